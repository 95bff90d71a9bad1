// Counters with one writer (the decoding thread) and any number of readers: plain adds, no locks, no torn reads.
#pragma once

#include "engine.h"

#include <atomic>

template <typename T> struct counter {
    std::atomic<T> value{0};
    void add(T n) { value.store(value.load(std::memory_order_relaxed) + n, std::memory_order_relaxed); }
    void set(T n) { value.store(n, std::memory_order_relaxed); }
    T get() const { return value.load(std::memory_order_relaxed); }
};

// Of one layer. `hits`, `misses` and `dropped` are per slot and decode only; prefill counts distinct experts per
// micro-batch.
struct layer_tally {
    counter<int64_t> hits, misses, dropped, swaps, prefill_hits, prefill_misses, events;
    counter<int64_t> resize_evictions, pressure_evictions;  // by a spec with less capacity, by engine_shrink
    counter<int64_t> warm_fills;                            // experts that engine_warm admitted
    counter<double> mass_lost, range_mean;
    counter<int32_t> capacity, resident;
};

struct engine_totals {
    counter<int64_t> prefill_tokens, decode_tokens, prefill_ns, decode_ns, stall_ns;
    counter<int64_t> flash_bytes, flash_reads, misses, events_dropped;
    counter<int64_t> evaluation_bytes;  // of flash_bytes, read to score a text; its misses are in no layer's tally
    counter<int64_t> warm_bytes;        // read by engine_warm; not in flash_bytes
    counter<int64_t> resizes, shrinks;  // specs that changed a capacity, requests to give memory back
};

// Smallest i with ns <= 2^i microseconds, capped at the last bucket.
inline int read_time_bucket(int64_t ns) {
    int i = 0;
    while (i < READ_TIME_BUCKETS - 1 && ns > (int64_t(1000) << i)) i++;
    return i;
}
