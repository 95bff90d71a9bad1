// Passes through the engine, one by one, beside the stock library's: both give their logits after the prompt and after
// each token that follows it.
#pragma once

#include "engine-fixture.h"
#include "engine-state.h"

#include "llama.h"

#include <algorithm>
#include <cstring>

using floats = std::vector<float>;

// Long enough that some experts have more rows than the 8 from which llama.cpp multiplies some types by another kernel.
static const std::vector<int32_t> PROMPT = {1, 70, 268, 300, 101, 5, 290, 44, 12, 199, 250, 31, 77, 8, 142, 300, 66, 215, 93, 18,
                                            271, 154, 39, 70, 268, 113, 280, 52, 6, 187, 229, 144, 21, 308, 95, 260, 47, 171, 4, 133};
static const int DECODED = 16;

// With room for one token's experts, which come so slowly that the graph has to wait for them.
static engine * open_at_least(const std::string & path) {
    model_info info;
    REQUIRE_OK(engine_inspect(path, info));
    engine_spec spec;
    spec.capacities.assign(info.moe_layers.size(), info.top_k);
    engine_open_options options = options_of(path, spec);
    options.read_bytes_per_second = 400000000;
    return open_engine(options);
}

static int32_t likeliest(const floats & logits) {
    return int32_t(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

static floats logits_of(llama_context * context, const llama_model * model) {
    const float * logits = llama_get_logits_ith(context, -1);
    return floats(logits, logits + llama_vocab_n_tokens(llama_model_get_vocab(model)));
}

// Greedy decoding by the stock library without a hook: the logits after the prompt and after each token. Loaded as the
// engine loads: a repacked weight is multiplied in another order, so without repacking (`use_extra_bufts`).
static std::vector<floats> stock_logits(const std::string & path) {
    llama_model_params mp = llama_model_default_params();
    mp.use_extra_bufts = false;
    mp.n_gpu_layers = 0;
    llama_model * model = llama_model_load_from_file(path.c_str(), mp);
    if (!model) exit(1);
    llama_context_params cp = llama_context_default_params();
    cp.n_ctx = cp.n_batch = cp.n_ubatch = uint32_t(llama_model_n_ctx_train(model));
    cp.n_threads = cp.n_threads_batch = 1;
    llama_context * context = llama_init_from_model(model, cp);
    std::vector<floats> out;
    std::vector<int32_t> feed = PROMPT;
    for (int i = 0; i <= DECODED; i++) {
        if (llama_decode(context, llama_batch_get_one(feed.data(), int32_t(feed.size()))) != 0) exit(1);
        out.push_back(logits_of(context, model));
        feed.assign(1, likeliest(out.back()));
    }
    llama_free(context);
    llama_model_free(model);
    return out;
}

// The prompt and `decoded` tokens through the engine's passes, in `context`; `on_pass` after each.
template <typename F> static void run_passes(engine & e, llama_context * context, int decoded, const F & on_pass) {
    llama_memory_clear(llama_get_memory(context), true);
    pass_batch batch;
    pass_batch_init(batch, int32_t(PROMPT.size()));
    layer_hook_follow(e.hook, e.spec);
    e.hook.step = 0;
    e.hook.ring = nullptr;
    std::vector<int32_t> feed = PROMPT;
    int32_t position = 0;
    for (int i = 0; i <= decoded; i++) {
        REQUIRE_OK(engine_run_pass(e, context, batch, feed.data(), int32_t(feed.size()), position, OUTPUTS_LAST,
                                   i == 0 ? PASS_PREFILL : PASS_ROUTED));
        position += int32_t(feed.size());
        feed.assign(1, on_pass(i, logits_of(context, e.model)));
    }
    pass_batch_free(batch);
}

static bool same_bytes(const floats & a, const floats & b) {
    return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Prompt and greedy decoding at lambda 0, at each capacity from top-K to all experts; the prompt's experts read before they
// are used, and passing through memory with hardly any beyond the capacity.
static void equals_stock_llama_at_lambda_zero(const std::string & path, engine * e) {
    const model_info & info = e->file.info;
    const std::vector<floats> stock = stock_logits(path);
    for (const auto & logits : stock) {
        for (const float l : logits) CHECK(std::isfinite(l));
    }
    CHECK(!same_bytes(stock[1], stock[2]));
    for (int capacity = info.top_k; capacity <= info.experts; capacity++) {
        engine_spec spec = e->spec;
        std::fill(spec.capacities.begin(), spec.capacities.end(), capacity);
        spec.routing = capacity % 2 ? ROUTING_ORIGINAL : ROUTING_CACHE_PRIOR;
        spec.lambda = 0;
        REQUIRE_OK(engine_apply(e, spec));
        for (const bool passing : {false, true}) {
            REQUIRE_OK(engine_drop_cache(e));
            e->hook.passing = passing;
            e->hook.passing_bytes = 1;
            int64_t misses = 0, waited_ns = 0;
            bool equal = true;
            run_passes(*e, e->context, passing ? 1 : DECODED, [&](int pass, const floats & logits) {
                equal = equal && same_bytes(logits, stock[size_t(pass)]);
                if (pass > 0) misses += e->hook.outcome.misses;
                waited_ns += e->hook.outcome.stall_ns;
                return likeliest(stock[size_t(pass)]);
            });
            CHECK(equal);
            if (capacity == info.top_k && !passing) CHECK(misses > 0 && waited_ns > 0);
            if (!equal) fprintf(stderr, "%s: differs from the stock library at capacity %d%s\n", path.c_str(), capacity, passing ? ", passing through" : "");
        }
        e->hook.passing = false;
    }
}
