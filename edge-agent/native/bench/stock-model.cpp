#include "stock-model.h"

#include "llama-runtime.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>

static bool read_tokens(const stock_options & o, stock_model & stock) {
    std::ifstream file(o.text_path, std::ios::binary);
    std::stringstream content;
    content << file.rdbuf();
    const std::string text = content.str();
    stock.tokens.resize(text.size() / 3 + 16);
    const llama_vocab * vocab = llama_model_get_vocab(stock.model);
    int32_t n = llama_tokenize(vocab, text.data(), int32_t(text.size()), stock.tokens.data(), int32_t(stock.tokens.size()), false, false);
    if (n < 0) {
        stock.tokens.resize(size_t(-int64_t(n)));
        n = llama_tokenize(vocab, text.data(), int32_t(text.size()), stock.tokens.data(), int32_t(stock.tokens.size()), false, false);
    }
    if (n <= o.tokens) return false;
    stock.tokens.resize(size_t(o.tokens) + 1);
    return true;
}

static float negative_log_likelihood(const float * logits, int vocab, llama_token target) {
    const float highest = *std::max_element(logits, logits + vocab);
    double total = 0;
    for (int t = 0; t < vocab; t++) total += std::exp(logits[t] - highest);
    return float(std::log(total) - double(logits[target] - highest));
}

std::string stock_open(const stock_options & o, stock_model & stock, llama_model * model) {
    const engine_status status = llama_runtime_start();
    if (failed(status)) return status.message;
    llama_model_params model_params = llama_model_default_params();
    model_params.use_extra_bufts = o.extra_bufts;
    if (!model) stock.own.reset(llama_model_load_from_file(o.model.c_str(), model_params));
    stock.model = model ? model : stock.own.get();
    if (!stock.model) return o.model + ": llama.cpp cannot load it: " + llama_runtime_errors();
    llama_context_params context_params = llama_context_default_params();
    context_params.n_ctx = uint32_t(o.context);
    context_params.n_threads = context_params.n_threads_batch = o.threads;
    context_params.cb_eval = o.hook;
    stock.context.reset(llama_init_from_model(stock.model, context_params));
    if (!stock.context) return o.model + ": llama.cpp makes no context: " + llama_runtime_errors();
    // As llama.cpp's own programs do.
    const engine_status started = compute_threads_start(stock.compute, o.threads);
    if (failed(started)) return started.message;
    llama_attach_threadpool(stock.context.get(), stock.compute.pool, nullptr);
    if (!read_tokens(o, stock)) return o.text_path + ": too short for " + std::to_string(o.tokens) + " tokens and a next one";
    return "";
}

void stock_restart(stock_model & stock) { llama_memory_clear(llama_get_memory(stock.context.get()), false); }

bool stock_decode_token(stock_model & stock, size_t i, stock_token & out) {
    out.start_ns = now_ns();
    // Continues at the position that the KV cache has come to.
    if (llama_decode(stock.context.get(), llama_batch_get_one(&stock.tokens[i], 1)) != 0) return false;
    const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(stock.model));
    out.nll = negative_log_likelihood(llama_get_logits_ith(stock.context.get(), -1), vocab, stock.tokens[i + 1]);
    out.end_ns = now_ns();
    return true;
}
