// The reference model opened for tests, and tokens of the texts beside it.
#pragma once

#include "engine.h"

#include "check.h"

#include <fstream>
#include <iterator>

[[maybe_unused]] static const char * MODEL = FIXTURES "/tinymoe-17m-q8_0.gguf";

[[maybe_unused]] static engine_spec spec_of(double lambda, int capacity, int top_j = 2) {
    engine_spec spec;
    spec.routing = ROUTING_CACHE_PRIOR;
    spec.lambda = lambda;
    spec.top_j = top_j;
    spec.capacities.assign(6, capacity);
    spec.generation = 7;
    return spec;
}

static engine_open_options options_of(const std::string & path, const engine_spec & spec) {
    engine_open_options o;
    o.model_path = path;
    o.threads = 1;
    o.lanes = 2;
    o.direct_io = false;  // the page cache is faster than a disk shared with other tests
    o.spec = spec;
    return o;
}

static engine * open_engine(const engine_open_options & options) {
    engine * e = nullptr;
    REQUIRE_OK(engine_open(options, nullptr, nullptr, e));
    return e;
}

[[maybe_unused]] static std::vector<int32_t> text_tokens(engine * e, const char * name, size_t bytes) {
    std::ifstream in(std::string(FIXTURES "/") + name);
    std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    text.resize(std::min(bytes, text.size()));
    std::vector<int32_t> tokens;
    REQUIRE_OK(engine_tokenize(e, text, false, false, tokens));
    return tokens;
}
