// The threads that compute, kept for the life of an engine. Left to itself llama.cpp starts and ends its threads for
// every piece of a graph, and the hook cuts a graph into several pieces per layer: with two threads that costs more than
// the reference model's arithmetic.
#pragma once

#include "status.h"

#include "llama.h"

struct compute_threads {
    ggml_threadpool_t pool = nullptr;
    void (*free)(ggml_threadpool_t) = nullptr;
    compute_threads() = default;
    compute_threads(const compute_threads &) = delete;
    ~compute_threads();
};

// After `llama_runtime_start`. INTERNAL.
engine_status compute_threads_start(compute_threads & threads, int n);
// Once no context uses them.
void compute_threads_stop(compute_threads & threads);
