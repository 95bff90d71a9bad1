// Warming the cache from a list: whose turn it is with the flash reader, and when it is done.
#include "engine-state.h"

#include <chrono>

static bool is_staged(void * data, int layer, int expert) { return prefetch_holds(static_cast<engine *>(data)->hook.prefetch, layer, expert); }

static int64_t warm_fills_of(const engine & e) {
    int64_t n = 0;
    for (int l = 0; l < e.layers.count; l++) n += e.layers[l].tally.warm_fills.get();
    return n;
}

engine_status engine_warm(engine * e, const std::vector<std::vector<int32_t>> & ranked, warm_result & out) {
    std::unique_lock<std::mutex> lock(e->mutex);
    out = warm_result();
    if (e->closed) return status_error(ENGINE_CLOSED, "the engine is closed");
    const engine_status status = warm_fill_check(e->file.info, ranked);
    if (failed(status)) return status;
    warm_fill_set(e->warm, ranked);
    const uint64_t ticket = e->warm.ticket;
    const int64_t experts = warm_fills_of(*e), bytes = e->totals.warm_bytes.get();
    e->changed.notify_all();
    while (!e->closed && e->warm.ticket == ticket) {
        if (e->running) {
            e->changed.wait(lock);
            continue;
        }
        const resizable_cache cache{&e->layers, &e->memory, e->options.keep_all, e->hook.evicted.data(), e->hook.changes};
        if (!warm_fill_step(e->warm, cache, e->totals, is_staged, e)) break;
        // Not the futex of the reader: that belongs to its producer, which a request that comes now will be.
        e->changed.wait_for(lock, std::chrono::microseconds(500));
    }
    if (e->closed) return status_error(ENGINE_CLOSED, "the engine was closed while its cache was filled");
    out.end = e->warm.ticket == ticket ? WARM_DONE : WARM_OVERTAKEN;
    out.experts = warm_fills_of(*e) - experts;
    out.bytes = e->totals.warm_bytes.get() - bytes;
    if (out.end == WARM_DONE) {
        out.failures = e->warm.failures;
        out.last_failure = e->warm.last_failure.message;
    }
    return {};
}
