#include "compute-threads.h"

#include "ggml-backend.h"
#include "ggml-cpu.h"

// How long a thread spins for more work before it sleeps, in llama.cpp's unit of 131,072 rounds: about 2 ms. That covers
// what lies between two pieces of a graph, and leaves the processor alone during a read. Without any spinning a token of
// the reference model takes 0.5 to 0.7 ms instead of 0.3 to 0.4; more of it gains nothing.
static const uint32_t POLL = 1;

compute_threads::~compute_threads() { compute_threads_stop(*this); }

engine_status compute_threads_start(compute_threads & threads, int n) {
    // The CPU backend is loaded at run time, so its functions are found through its registration.
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    ggml_backend_reg_t backend = cpu ? ggml_backend_dev_backend_reg(cpu) : nullptr;
    const auto create = backend ? reinterpret_cast<decltype(&ggml_threadpool_new)>(ggml_backend_reg_get_proc_address(backend, "ggml_threadpool_new")) : nullptr;
    threads.free = backend ? reinterpret_cast<decltype(&ggml_threadpool_free)>(ggml_backend_reg_get_proc_address(backend, "ggml_threadpool_free")) : nullptr;
    if (!create || !threads.free) return status_error(ENGINE_INTERNAL, "llama.cpp's CPU backend has no thread pool");
    ggml_threadpool_params params = ggml_threadpool_params_default(n);
    params.poll = POLL;
    threads.pool = create(&params);
    return threads.pool ? engine_status() : status_error(ENGINE_INTERNAL, "%d compute threads could not be started", n);
}

void compute_threads_stop(compute_threads & threads) {
    if (threads.pool) threads.free(threads.pool);
    threads.pool = nullptr;
}
