// What routing remembers of one MoE layer: the logical cache, the running mean of ranges, and the tallies. The
// engine has one array of these for its real cache; a batched evaluation makes a virtual one of its own.
#pragma once

#include "counters.h"
#include "expert-cache.h"
#include "routing.h"

#include <memory>

struct layer_state {
    expert_cache cache;
    range_mean range;
    layer_tally tally;
};

// Fixed length, since tallies are atomics and do not move.
struct layer_states {
    std::unique_ptr<layer_state[]> of;
    int count = 0;
    layer_state & operator[](int i) { return of[size_t(i)]; }
    const layer_state & operator[](int i) const { return of[size_t(i)]; }
};

void layer_states_init(layer_states & states, int experts, const engine_spec & spec);
// Empties the caches and forgets the means; keeps the tallies.
void layer_states_reset(layer_states & states);
