// Resizing the real cache: by a spec at a token boundary, and downwards at the next layer when memory is short.
//
// Whoever feels memory pressure asks, from any thread, for smaller caches. The hook answers before it routes the next
// layer, for all layers at once: members leave through the policy and their pages go back to the system. To the hook a
// request is a few atomics, so nothing there waits or allocates. A request only ever takes: growing again is a spec's
// business. What it asked for holds until a spec that was applied later comes into force.
#pragma once

#include "expert-memory.h"
#include "layer-state.h"

struct cache_shrink {
    // Experts a layer may hold, NO_LIMIT where nothing was asked. Written under the engine's mutex.
    std::unique_ptr<std::atomic<int32_t>[]> most;
    int layers = 0;
    std::atomic<uint64_t> asked{0};   // requests so far
    std::atomic<uint64_t> served{0};  // requests that are in force or were overtaken by a spec
};

enum { NO_LIMIT = INT32_MAX };

// Changes of capacity, and experts admitted by a warm fill, as they come into force, for a replay of the routes that are
// recorded beside them. Holds as many as there was room for when it was made, since a shrink comes in the middle of a pass,
// where nothing may allocate.
struct cache_change_log {
    std::unique_ptr<cache_change[]> of;
    int32_t room = 0, count = 0;
    int32_t lost = 0;  // changes that found no room: a replay is not exact any more
};
void cache_change_log_init(cache_change_log & log, int32_t room);
void cache_change_log_add(cache_change_log & log, const cache_change & change);

// What resizing needs of the engine. `evicted` is scratch for one layer's experts; `log` is null where nothing is recorded.
struct resizable_cache {
    layer_states * layers;
    expert_memory * memory;
    bool keep_all;
    int32_t * evicted;
    cache_change_log * log;
};

void cache_shrink_init(cache_shrink & shrink, int layers);

// Lowers the limits; returns the number by which `served` says when they are in force.
uint64_t cache_shrink_ask(cache_shrink & shrink, const std::vector<int32_t> & capacities);
// The smaller of each capacity and its limit.
void cache_shrink_limit(const cache_shrink & shrink, std::vector<int32_t> & capacities);
// A spec that knows of all requests so far is in force.
void cache_shrink_clear(cache_shrink & shrink);

inline bool cache_shrink_waits(const cache_shrink & shrink) {
    return shrink.asked.load(std::memory_order_acquire) != shrink.served.load(std::memory_order_relaxed);
}
// Brings the limits into force. Only for the thread that owns the cache; never between a layer's routing and its use.
void cache_shrink_serve(cache_shrink & shrink, const resizable_cache & cache);

// Brings a spec's capacities into force, in either direction.
void cache_resize(const resizable_cache & cache, const std::vector<int32_t> & capacities);
