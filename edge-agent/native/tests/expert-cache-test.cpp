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

static void never_evicts_what_the_event_selected() {
    expert_cache c;
    expert_cache_init(c, 8, 3);
    for (int32_t i = 0; i < 200; i++) {
        const int32_t a = i % 8, b = (i * 3 + 1) % 8, d = (i * 5 + 2) % 8;
        if (a == b || b == d || a == d) continue;
        const seen s = route(c, {a, b, d});
        CHECK_EQUAL(s.event.hits + s.event.misses, 3);
        CHECK(c.resident[size_t(a)] && c.resident[size_t(b)] && c.resident[size_t(d)]);
        CHECK_EQUAL(c.size, 3);
    }
}

int main() {
    looks_up_before_it_touches();
    makes_the_best_ranked_the_most_recent();
    evicts_down_to_a_smaller_capacity();
    measures_lifetimes_in_tokens();
    takes_back_an_admission();
    never_evicts_what_the_event_selected();
    return checks_done();
}
