#include "bench-modes.h"

#include "compute-threads.h"
#include "llama-runtime.h"

#include "llama.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <memory>
#include <sstream>
#include <sys/resource.h>
#include <vector>

namespace {

struct free_model { void operator()(llama_model * m) const { llama_model_free(m); } };
struct free_context { void operator()(llama_context * c) const { llama_free(c); } };

struct stock_run {
    compute_threads compute;
    std::unique_ptr<llama_model, free_model> model;
    std::unique_ptr<llama_context, free_context> context;
    std::vector<llama_token> tokens;  // one more than is decoded: each is scored on its next
    std::vector<int64_t> start_ns, end_ns;
    std::vector<float> nll;
};

int fail(const std::string & what) {
    fprintf(stderr, "%s\n", what.c_str());
    return 1;
}

bool read_tokens(const stock_options & o, stock_run & run) {
    std::ifstream file(o.text_path, std::ios::binary);
    std::stringstream content;
    content << file.rdbuf();
    const std::string text = content.str();
    run.tokens.resize(text.size() / 3 + 16);
    const llama_vocab * vocab = llama_model_get_vocab(run.model.get());
    int32_t n = llama_tokenize(vocab, text.data(), int32_t(text.size()), run.tokens.data(), int32_t(run.tokens.size()), false, false);
    if (n < 0) {
        run.tokens.resize(size_t(-int64_t(n)));
        n = llama_tokenize(vocab, text.data(), int32_t(text.size()), run.tokens.data(), int32_t(run.tokens.size()), false, false);
    }
    if (n <= o.tokens) return false;
    run.tokens.resize(size_t(o.tokens) + 1);
    return true;
}

float negative_log_likelihood(const float * logits, int vocab, llama_token target) {
    const float highest = *std::max_element(logits, logits + vocab);
    double total = 0;
    for (int t = 0; t < vocab; t++) total += std::exp(logits[t] - highest);
    return float(std::log(total) - double(logits[target] - highest));
}

bool decode_all(const stock_options & o, stock_run & run) {
    const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(run.model.get()));
    for (int32_t i = 0; i < o.tokens; i++) {
        if (i % o.context == 0) llama_memory_clear(llama_get_memory(run.context.get()), false);
        run.start_ns.push_back(now_ns());
        // Continues at the position that the KV cache has come to.
        if (llama_decode(run.context.get(), llama_batch_get_one(&run.tokens[size_t(i)], 1)) != 0) return false;
        run.nll.push_back(negative_log_likelihood(llama_get_logits_ith(run.context.get(), -1), vocab, run.tokens[size_t(i) + 1]));
        run.end_ns.push_back(now_ns());
    }
    return true;
}

template <typename T> void print_list(const char * name, const std::vector<T> & values, const char * format) {
    printf("\"%s\":[", name);
    for (size_t i = 0; i < values.size(); i++) {
        if (i) putchar(',');
        printf(format, values[i]);
    }
    printf("],");
}

}  // namespace

int stock_decode(const stock_options & o) {
    const engine_status status = llama_runtime_start();
    if (failed(status)) return fail(status.message);
    stock_run run;
    llama_model_params model_params = llama_model_default_params();
    model_params.use_extra_bufts = o.extra_bufts;
    run.model.reset(llama_model_load_from_file(o.model.c_str(), model_params));
    if (!run.model) return fail(o.model + ": llama.cpp cannot load it: " + llama_runtime_errors());
    llama_context_params context_params = llama_context_default_params();
    context_params.n_ctx = uint32_t(o.context);
    context_params.n_threads = context_params.n_threads_batch = o.threads;
    run.context.reset(llama_init_from_model(run.model.get(), context_params));
    if (!run.context) return fail(o.model + ": llama.cpp makes no context: " + llama_runtime_errors());
    // As llama.cpp's own programs do.
    const engine_status started = compute_threads_start(run.compute, o.threads);
    if (failed(started)) return fail(started.message);
    llama_attach_threadpool(run.context.get(), run.compute.pool, nullptr);
    if (!read_tokens(o, run)) return fail(o.text_path + ": too short for " + std::to_string(o.tokens) + " tokens and a next one");
    for (int32_t pass = 0; pass < o.passes; pass++) {
        if (!decode_all(o, run)) return fail("llama.cpp could not decode: " + llama_runtime_errors());
    }
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("{");
    print_list("startNs", run.start_ns, "%ld");
    print_list("endNs", run.end_ns, "%ld");
    print_list("nll", run.nll, "%.6g");
    const auto seconds = [](const timeval & t) { return double(t.tv_sec) + double(t.tv_usec) / 1e6; };
    printf("\"peakRssBytes\":%lld,\"cpuSeconds\":%.3f}\n", (long long) usage.ru_maxrss * 1024, seconds(usage.ru_utime) + seconds(usage.ru_stime));
    return 0;
}
