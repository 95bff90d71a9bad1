#include "expert-cache.h"

#include "check.h"

struct seen {
    cache_event event;
    int32_t missed[8], evicted[8];
};

static seen route(expert_cache & c, std::vector<int32_t> ids) {
    seen s;
    s.event = cache_event{0, 0, 0, s.missed, s.evicted};
    expert_cache_event(c, ids.data(), int(ids.size()), s.event);
    return s;
}

static std::vector<int32_t> members(const expert_cache & c) {
    std::vector<int32_t> out(size_t(c.experts));
    out.resize(size_t(expert_cache_members(c, out.data())));
    return out;
}

static void looks_up_before_it_touches() {
    expert_cache c;
    expert_cache_init(c, 8, 2);
    seen s = route(c, {0, 1});
    CHECK_EQUAL(s.event.misses, 2);
    CHECK_EQUAL(s.event.evictions, 0);
    // 1 is the least recent (0 ranked above it), yet a hit: it is looked up before 2 is admitted.
    s = route(c, {2, 1});
    CHECK_EQUAL(s.event.hits, 1);
    CHECK_EQUAL(s.event.misses, 1);
    CHECK_EQUAL(s.event.evictions, 1);
    CHECK_EQUAL(s.missed[0], 2);
    // One by one, admitting 2 would have evicted 1 and made it a miss; as one event, 0 goes.
    CHECK_EQUAL(s.evicted[0], 0);
    CHECK(members(c) == (std::vector<int32_t>{1, 2}));
}

static void makes_the_best_ranked_the_most_recent() {
    expert_cache c;
    expert_cache_init(c, 8, 4);
    route(c, {5, 3, 1});
    CHECK(members(c) == (std::vector<int32_t>{1, 3, 5}));
    route(c, {1, 6});
    CHECK(members(c) == (std::vector<int32_t>{3, 5, 6, 1}));
    seen s = route(c, {7});
    CHECK_EQUAL(s.evicted[0], 3);
}

static void evicts_down_to_a_smaller_capacity() {
    expert_cache c;
    expert_cache_init(c, 8, 4);
    route(c, {0, 1, 2, 3});
    int32_t evicted[8];
    CHECK_EQUAL(expert_cache_resize(c, 2, evicted), 2);
    CHECK(evicted[0] == 3 && evicted[1] == 2);
    CHECK_EQUAL(c.size, 2);
    CHECK_EQUAL(expert_cache_resize(c, 8, evicted), 0);
    route(c, {4, 5, 6});
    CHECK_EQUAL(c.size, 5);
}

static void measures_lifetimes_in_tokens() {
    expert_cache c;
    expert_cache_init(c, 8, 1);
    CHECK(expert_cache_mean_lifetime(c) < 0);
    route(c, {0});
    route(c, {0});
    route(c, {1});  // 0 lived two tokens
    route(c, {2});  // 1 lived one
    CHECK_NEAR(expert_cache_mean_lifetime(c), 1.5, 1e-12);
}

static void takes_back_an_admission() {
    expert_cache c;
    expert_cache_init(c, 8, 3);
    route(c, {0, 1, 2});
    expert_cache_forget(c, 1);
    expert_cache_forget(c, 1);
    expert_cache_forget(c, 7);
    CHECK(members(c) == (std::vector<int32_t>{2, 0}));
    const seen s = route(c, {1, 3});
    CHECK_EQUAL(s.event.misses, 2);
    CHECK_EQUAL(s.evicted[0], 2);
    expert_cache_reset(c);
    CHECK_EQUAL(c.size, 0);
    CHECK(members(c).empty());
}

static void never_evicts_what_the_event_selected(engine_eviction policy, double half_life) {
    expert_cache c;
    expert_cache_init(c, 8, 3);
    expert_cache_evict_by(c, policy, half_life);
    for (int32_t i = 0; i < 200; i++) {
        const int32_t a = i % 8, b = (i * 3 + 1) % 8, d = (i * 5 + 2) % 8;
        if (a == b || b == d || a == d) continue;
        const seen s = route(c, {a, b, d});
        CHECK_EQUAL(s.event.hits + s.event.misses, 3);
        CHECK(c.resident[size_t(a)] && c.resident[size_t(b)] && c.resident[size_t(d)]);
        CHECK_EQUAL(c.size, 3);
    }
}

static void counts_uses_across_evictions() {
    expert_cache c;
    expert_cache_init(c, 8, 2);
    c.eviction = EVICT_LFU;
    route(c, {0});
    route(c, {0});
    route(c, {0});        // 0: 3 uses
    route(c, {1});        // 1: 1
    seen s = route(c, {2});
    CHECK_EQUAL(s.evicted[0], 1);
    s = route(c, {1});    // 1 comes back with 2 uses and displaces 2, which has 1; LRU would have sent 0
    CHECK_EQUAL(s.evicted[0], 2);
    s = route(c, {2});    // 2 has 2 now, as 1 has, 0 has 3: 1 goes although it was used after 0
    CHECK_EQUAL(s.evicted[0], 1);
    CHECK_EQUAL(c.uses[1], 2);
}

static void breaks_ties_of_frequency_by_recency() {
    for (const engine_eviction policy : {EVICT_LFU, EVICT_LFRU}) {
        expert_cache c;
        expert_cache_init(c, 8, 3);
        expert_cache_evict_by(c, policy, 0);
        route(c, {2, 1, 0});  // used once each in the same event; 0 was ranked worst
        const seen s = route(c, {3});
        CHECK_EQUAL(s.evicted[0], 0);
    }
}

static void divides_frequency_by_the_time_since_the_last_use() {
    expert_cache c;
    expert_cache_init(c, 8, 3);
    c.eviction = EVICT_LFRU;
    for (int i = 0; i < 4; i++) route(c, {0});  // tokens 1 to 4
    route(c, {1});                              // 5
    route(c, {1});                              // 6
    route(c, {2});                              // 7
    // At token 8: 0 is worth 4/4, 1 is worth 2/2, 2 is worth 1/1. All tie, and 0 is the least recent.
    seen s = route(c, {3});
    CHECK_EQUAL(s.evicted[0], 0);
    // At token 9: 1 is worth 2/3, 2 1/2, 3 1/1. LFU would choose between 2 and 3, LRU would send 1.
    s = route(c, {4});
    CHECK_EQUAL(s.evicted[0], 2);
}

static void forgets_old_uses_by_half_lives() {
    for (const bool ageing : {false, true}) {
        expert_cache c;
        expert_cache_init(c, 8, 2);
        c.eviction = EVICT_LFU;
        c.half_life = ageing ? 1 : 0;
        for (int i = 0; i < 3; i++) route(c, {0});
        for (int i = 0; i < 2; i++) route(c, {1});
        CHECK_NEAR(c.uses[0], ageing ? 1 + 0.5 + 0.25 : 3, 1e-12);  // at token 3
        CHECK_NEAR(c.uses[1], ageing ? 1 + 0.5 : 2, 1e-12);         // at token 5
        // At token 6 the aged uses are 1.75 / 8 and 1.5 / 2, the plain ones 3 and 2.
        const seen s = route(c, {2});
        CHECK_EQUAL(s.evicted[0], ageing ? 0 : 1);
    }
}

static void keeps_the_latest_event_through_a_resize() {
    for (const engine_eviction policy : {EVICT_LRU, EVICT_LFU, EVICT_LFRU, EVICT_ADAPTIVE}) {
        expert_cache c;
        expert_cache_init(c, 8, 4);
        expert_cache_evict_by(c, policy, 0);
        for (int i = 0; i < 3; i++) route(c, {0, 1});
        route(c, {2, 3});
        int32_t evicted[8];
        CHECK_EQUAL(expert_cache_resize(c, 2, evicted), 2);
        CHECK(evicted[0] == 1 && evicted[1] == 0);
        CHECK(c.resident[2] && c.resident[3]);
        expert_cache_reset(c);
        CHECK_EQUAL(c.uses[0], 0);
        CHECK_EQUAL(c.eviction, policy);
    }
}

int main() {
    looks_up_before_it_touches();
    makes_the_best_ranked_the_most_recent();
    evicts_down_to_a_smaller_capacity();
    measures_lifetimes_in_tokens();
    takes_back_an_admission();
    for (const engine_eviction policy : {EVICT_LRU, EVICT_LFU, EVICT_LFRU, EVICT_ADAPTIVE}) {
        never_evicts_what_the_event_selected(policy, 0);
        never_evicts_what_the_event_selected(policy, 16);
    }
    counts_uses_across_evictions();
    breaks_ties_of_frequency_by_recency();
    divides_frequency_by_the_time_since_the_last_use();
    forgets_old_uses_by_half_lives();
    keeps_the_latest_event_through_a_resize();
    return checks_done();
}
