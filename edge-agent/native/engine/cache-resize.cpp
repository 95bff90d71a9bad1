#include "cache-resize.h"

#include <algorithm>

void cache_shrink_init(cache_shrink & shrink, int layers) {
    shrink.layers = layers;
    shrink.most.reset(new std::atomic<int32_t>[size_t(layers)]);
    cache_shrink_clear(shrink);
}

uint64_t cache_shrink_ask(cache_shrink & shrink, const std::vector<int32_t> & capacities) {
    for (int l = 0; l < shrink.layers; l++) {
        std::atomic<int32_t> & most = shrink.most[size_t(l)];
        most.store(std::min(most.load(std::memory_order_relaxed), capacities[size_t(l)]), std::memory_order_relaxed);
    }
    return shrink.asked.fetch_add(1, std::memory_order_release) + 1;
}

void cache_shrink_limit(const cache_shrink & shrink, std::vector<int32_t> & capacities) {
    for (int l = 0; l < shrink.layers; l++) {
        capacities[size_t(l)] = std::min(capacities[size_t(l)], shrink.most[size_t(l)].load(std::memory_order_relaxed));
    }
}

void cache_shrink_clear(cache_shrink & shrink) {
    for (int l = 0; l < shrink.layers; l++) shrink.most[size_t(l)].store(NO_LIMIT, std::memory_order_relaxed);
    shrink.served.store(shrink.asked.load(std::memory_order_relaxed), std::memory_order_release);
}

void cache_change_log_init(cache_change_log & log, int32_t room) {
    log.of.reset(new cache_change[size_t(room)]);
    log.room = room;
    log.count = log.lost = 0;
}

void cache_change_log_add(cache_change_log & log, const cache_change & change) {
    if (log.count == log.room) log.lost++;
    else log.of[log.count++] = change;
}

static void note(cache_change_log & log, const expert_cache & cache, int layer, int capacity) {
    if (capacity == cache.capacity) return;
    cache_change_log_add(log, {layer, int32_t(cache.clock), capacity});
}

// Returns how many experts had to leave.
static int resize_layer(const resizable_cache & cache, int layer, int capacity) {
    layer_state & state = (*cache.layers)[layer];
    if (cache.log) note(*cache.log, state.cache, layer, capacity);
    const int n = expert_cache_resize(state.cache, capacity, cache.evicted);
    for (int i = 0; i < n && !cache.keep_all; i++) expert_memory_release(*cache.memory, layer, cache.evicted[i]);
    state.tally.capacity.set(capacity);
    state.tally.resident.set(state.cache.size);
    return n;
}

void cache_shrink_serve(cache_shrink & shrink, const resizable_cache & cache) {
    // Before the limits are read: one that is lowered meanwhile belongs to a later request.
    const uint64_t asked = shrink.asked.load(std::memory_order_acquire);
    for (int l = 0; l < shrink.layers; l++) {
        const int32_t most = shrink.most[size_t(l)].load(std::memory_order_relaxed);
        if (most >= (*cache.layers)[l].cache.capacity) continue;
        (*cache.layers)[l].tally.pressure_evictions.add(resize_layer(cache, l, most));
    }
    shrink.served.store(asked, std::memory_order_release);
}

void cache_resize(const resizable_cache & cache, const std::vector<int32_t> & capacities) {
    for (int l = 0; l < cache.layers->count; l++) {
        (*cache.layers)[l].tally.resize_evictions.add(resize_layer(cache, l, capacities[size_t(l)]));
    }
}
