#include "expert-cache.h"

#include <cmath>

void expert_cache_init(expert_cache & c, int experts, int capacity) {
    c.experts = experts;
    c.capacity = capacity;
    c.newer.assign(size_t(experts), -1);
    c.older.assign(size_t(experts), -1);
    c.resident.assign(size_t(experts), 0);
    c.admitted.assign(size_t(experts), 0);
    c.uses.resize(size_t(experts));
    c.used.resize(size_t(experts));
    c.next_use.assign(size_t(experts), INFINITY);
    expert_cache_reset(c);
}

void expert_cache_evict_by(expert_cache & c, engine_eviction eviction, double half_life) {
    if (eviction == EVICT_ADAPTIVE && c.eviction != EVICT_ADAPTIVE) reuse_predictor_init(c.reuse, c.experts);
    c.eviction = eviction;
    c.half_life = half_life;
}

void expert_cache_reset(expert_cache & c) {
    for (auto & r : c.resident) r = 0;
    for (auto & n : c.uses) n = 0;
    for (auto & t : c.used) t = 0;
    c.size = 0;
    c.clock = 0;
    c.head = c.tail = -1;
    c.evictions = c.lifetime_tokens = 0;
    reuse_predictor_reset(c.reuse);
}

static void unlink(expert_cache & c, int e) {
    if (c.newer[e] >= 0) c.older[c.newer[e]] = c.older[e];
    else c.head = c.older[e];
    if (c.older[e] >= 0) c.newer[c.older[e]] = c.newer[e];
    else c.tail = c.newer[e];
}

static void push_front(expert_cache & c, int e) {
    c.newer[e] = -1;
    c.older[e] = c.head;
    if (c.head >= 0) c.newer[c.head] = e;
    else c.tail = e;
    c.head = e;
}

static void push_back(expert_cache & c, int e) {
    c.older[e] = -1;
    c.newer[e] = c.tail;
    if (c.tail >= 0) c.older[c.tail] = e;
    else c.head = e;
    c.tail = e;
}

static double uses_now(const expert_cache & c, int e) {
    return c.half_life > 0 ? c.uses[e] * std::exp2(-double(c.clock - c.used[e]) / c.half_life) : c.uses[e];
}

static double worth(const expert_cache & c, int e) {
    if (c.used[e] == c.clock) return INFINITY;
    if (c.eviction == EVICT_BELADY) return -c.next_use[e];
    return c.eviction == EVICT_LFU ? uses_now(c, e) : uses_now(c, e) / double(c.clock - c.used[e]);
}

// Without a branch on what was learned, as nobody could guess it.
static int worth_least_as_learned(const expert_cache & c) {
    int victim = c.tail;
    float least = INFINITY;
    for (int e = c.tail; e >= 0; e = c.newer[e]) {
        const float w = c.used[e] == c.clock ? INFINITY : c.reuse.worth[e];
        victim = w < least ? e : victim;
        least = w < least ? w : least;
    }
    return victim;
}

static int worth_least(const expert_cache & c) {
    int victim = c.tail;
    if (c.eviction == EVICT_LRU) return victim;
    if (c.eviction == EVICT_ADAPTIVE) return worth_least_as_learned(c);
    double least = worth(c, victim);
    for (int e = c.newer[victim]; e >= 0; e = c.newer[e]) {
        const double w = worth(c, e);
        if (w >= least) continue;
        least = w;
        victim = e;
    }
    return victim;
}

static int evict_one(expert_cache & c) {
    const int victim = worth_least(c);
    unlink(c, victim);
    c.resident[victim] = 0;
    c.size--;
    c.evictions++;
    c.lifetime_tokens += c.clock - c.admitted[victim];
    return victim;
}

void expert_cache_event(expert_cache & c, const int32_t * ids, int k, cache_event & event, const reuse_scores & scores) {
    event.hits = event.misses = event.evictions = 0;
    c.clock++;
    for (int i = 0; i < k; i++) {
        if (c.resident[ids[i]]) event.hits++;
        else event.missed[event.misses++] = ids[i];
    }
    for (int i = k - 1; i >= 0; i--) {
        const int e = ids[i];
        if (c.resident[e]) {
            unlink(c, e);
        } else {
            c.resident[e] = 1;
            c.admitted[e] = c.clock;
            c.size++;
        }
        push_front(c, e);
        c.uses[e] = uses_now(c, e) + 1;
        c.used[e] = c.clock;
    }
    if (c.eviction == EVICT_ADAPTIVE && c.capacity < c.experts) reuse_predictor_observe(c.reuse, ids, k, scores, c.capacity);
    while (c.size > c.capacity) event.evicted[event.evictions++] = evict_one(c);
}

int expert_cache_resize(expert_cache & c, int capacity, int32_t * evicted) {
    c.capacity = capacity;
    int n = 0;
    while (c.size > capacity) evicted[n++] = evict_one(c);
    return n;
}

bool expert_cache_warm(expert_cache & c, int expert) {
    if (c.resident[expert] || c.size >= c.capacity) return false;
    push_back(c, expert);
    c.resident[expert] = 1;
    c.admitted[expert] = c.clock;
    c.size++;
    if (c.eviction == EVICT_ADAPTIVE) reuse_predictor_expect(c.reuse, expert);
    return true;
}

void expert_cache_forget(expert_cache & c, int expert) {
    if (!c.resident[expert]) return;
    unlink(c, expert);
    c.resident[expert] = 0;
    c.size--;
}

int expert_cache_members(const expert_cache & c, int32_t * out) {
    int n = 0;
    for (int e = c.tail; e >= 0; e = c.newer[e]) out[n++] = e;
    return n;
}

double expert_cache_mean_lifetime(const expert_cache & c) {
    return c.evictions ? double(c.lifetime_tokens) / double(c.evictions) : -1;
}
