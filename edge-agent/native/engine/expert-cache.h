// The logical cache of one MoE layer: which experts are members, in which order they were last used, and how often.
//
// It owns membership and use only; bytes and reads belong to expert-memory and flash-reader. Its invariant is that
// it changes by whole routing events: a token's K experts are looked up before any of them is touched, then touched
// worst ranked first (so the best ranked ends up the most recent), the missing admitted, and members evicted down to
// `capacity`. Since `capacity` >= K, an event never evicts an expert it selected. Who goes is the one worth least:
//
//   LRU       the least recently used
//   LFU       uses(e), which count on while e is out of the cache
//   LFRU      uses(e) / tokens since e was last used
//   ADAPTIVE  the uses to come that were learned for e (reuse-predictor.h)
//   BELADY    -(clock of e's next event), told in advance by a replay (replay.cpp)
//
// where experts of the latest event are beyond price and ties go to the least recently used. With a half-life H a use
// of t tokens ago counts 2^(-t/H). Uses are counted under LRU too, so that a change of policy finds them.
#pragma once

#include "engine.h"
#include "reuse-predictor.h"

#include <cstddef>
#include <cstdint>
#include <vector>

struct expert_cache {
    int experts = 0;
    int capacity = 0;
    int size = 0;
    engine_eviction eviction = EVICT_LRU;
    double half_life = 0;               // tokens; 0: uses do not age
    uint64_t clock = 0;                 // routing events seen, i.e. tokens of this layer
    int32_t head = -1, tail = -1;       // most and least recent member
    std::vector<int32_t> newer, older;  // links of members; meaningless for the others
    std::vector<uint8_t> resident;      // 0 or 1 per expert
    std::vector<uint64_t> admitted;     // clock at admission; valid only for members
    std::vector<double> uses;           // per expert, member or not, aged up to `used`
    std::vector<uint64_t> used;         // clock of the expert's last event; 0: none
    reuse_predictor reuse;              // EVICT_ADAPTIVE only; learns while the layer has to choose, i.e. capacity < experts
    std::vector<double> next_use;       // EVICT_BELADY only: clock of the expert's next event, set before each of its events
    uint64_t evictions = 0;
    uint64_t lifetime_tokens = 0;       // sum over evictions of clock - admitted
};

void expert_cache_init(expert_cache & c, int experts, int capacity);
// Allocates what the policy needs; what it learns begins here, unless it was in force already.
void expert_cache_evict_by(expert_cache & c, engine_eviction eviction, double half_life);
// Forgets members, recency, uses, clock and lifetimes; keeps the capacity and the policy.
void expert_cache_reset(expert_cache & c);

// One token's experts, best ranked first, and what the routers said of it. `missed` and `evicted` have room for k ids each;
// misses come best ranked first, evictions in the order they happened.
struct cache_event {
    int hits, misses, evictions;
    int32_t * missed;
    int32_t * evicted;
};
void expert_cache_event(expert_cache & c, const int32_t * ids, int k, cache_event & event, const reuse_scores & scores = {});

// Evicts members down to the new capacity; `evicted` has room for `experts` ids. Returns how many.
int expert_cache_resize(expert_cache & c, int capacity, int32_t * evicted);

// Admits an expert between two events, with nothing used: as the least recent member, behind those admitted so before. The
// adaptive policy expects the more of it the sooner it is admitted, until the first event. False where it is a member or there is
// no room.
bool expert_cache_warm(expert_cache & c, int expert);

// Takes back an admission whose bytes never arrived.
void expert_cache_forget(expert_cache & c, int expert);

// Members from least to most recent; `out` has room for `experts` ids. Returns how many.
int expert_cache_members(const expert_cache & c, int32_t * out);

// Mean tokens from admission to eviction, negative where nothing was evicted.
double expert_cache_mean_lifetime(const expert_cache & c);
