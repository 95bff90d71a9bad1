// The stock library as the benches decode with it: the file mapped, no hook, on threads of its own as llama.cpp's programs
// have them.
#pragma once

#include "bench-modes.h"

#include "compute-threads.h"

#include "llama.h"

#include <memory>
#include <vector>

struct free_model { void operator()(llama_model * m) const { llama_model_free(m); } };
struct free_context { void operator()(llama_context * c) const { llama_free(c); } };

struct stock_model {
    compute_threads compute;
    std::unique_ptr<llama_model, free_model> own;  // unless it is somebody else's
    llama_model * model = nullptr;
    std::unique_ptr<llama_context, free_context> context;
    std::vector<llama_token> tokens;  // one more than is decoded: each is scored on its next
};

struct stock_token { int64_t start_ns, end_ns; float nll; };

// Loads the model, unless it is given, and takes `o.tokens` tokens, and the next one, of the text. Empty, or what is wrong.
std::string stock_open(const stock_options & o, stock_model & stock, llama_model * model = nullptr);
// Decodes token `i`, behind those decoded since the last stock_restart. False where llama.cpp cannot.
bool stock_decode_token(stock_model & stock, size_t i, stock_token & out);
// Empties the KV cache.
void stock_restart(stock_model & stock);
