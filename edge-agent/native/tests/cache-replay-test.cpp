#include "engine.h"

#include "check.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>

using trace = std::vector<std::vector<int32_t>>;

static simulate_request request_of(const trace & events, int experts, int top_k, int capacity, engine_eviction eviction) {
    simulate_request r;
    r.experts = experts;
    r.top_k = top_k;
    r.capacity = capacity;
    r.eviction = eviction;
    r.layer_events = {int32_t(events.size())};
    for (const auto & ids : events) {
        r.routes.insert(r.routes.end(), ids.begin(), ids.end());
        r.routes.resize(r.routes.size() + size_t(top_k) - ids.size(), -1);
    }
    return r;
}

static int64_t misses_of(const simulate_request & r) {
    simulate_result out;
    REQUIRE_OK(engine_simulate(r, out));
    int64_t misses = 0;
    for (const simulated_layer & layer : out.layers) misses += layer.misses;
    return misses;
}

// Some experts are used more than others, and what was used lately is used again: otherwise all policies are alike.
static trace random_trace(std::mt19937 & random, int events, int experts, int top_k, bool drops) {
    trace out;
    std::vector<int32_t> order(size_t(experts), 0);
    for (int e = 0; e < experts; e++) order[size_t(e)] = e;
    std::shuffle(order.begin(), order.end(), random);
    for (int t = 0; t < events; t++) {
        std::vector<int32_t> ids;
        const int used = drops ? 1 + int(random() % unsigned(top_k)) : top_k;
        while (int(ids.size()) < used) {
            const unsigned most = 1 + unsigned(random() % unsigned(experts));
            const int32_t e = random() % 3 == 0 && !out.empty() ? out.back()[random() % out.back().size()] : order[random() % most];
            if (std::find(ids.begin(), ids.end(), e) == ids.end()) ids.push_back(e);
        }
        out.push_back(ids);
    }
    return out;
}

// Fewest misses over every choice of victims: the reachable caches, each with the fewest misses that lead to it.
static int64_t fewest_misses(const trace & events, int experts, int capacity) {
    std::map<uint32_t, int64_t> reach{{0, 0}};
    for (const auto & ids : events) {
        uint32_t selected = 0;
        for (const int32_t e : ids) selected |= 1u << e;
        std::map<uint32_t, int64_t> after;
        for (const auto & [members, misses] : reach) {
            const uint32_t all = members | selected;
            const int64_t total = misses + __builtin_popcount(selected & ~members);
            for (uint32_t kept = 0; kept < (1u << experts); kept++) {
                if ((kept & ~all) || (selected & ~kept) || __builtin_popcount(kept) > capacity) continue;
                const auto at = after.find(kept);
                if (at == after.end() || at->second > total) after[kept] = total;
            }
        }
        reach = after;
    }
    int64_t fewest = INT64_MAX;
    for (const auto & [members, misses] : reach) fewest = std::min(fewest, misses);
    return fewest;
}

static void counts_by_whole_events() {
    // The trace of expert-cache-test: taken one by one, expert 1 would be a miss of the second event.
    const simulate_request lru = request_of({{0, 1}, {2, 1}}, 8, 2, 2, EVICT_LRU);
    CHECK_EQUAL(misses_of(lru), 3);
    // 0 1 | 2 3 | 0 4 | 1 0 with three places. Belady: 2 3 push out 1 (next used after 0); 0 hits, 4 pushes out 2 or 3, never
    // used again; 1 misses. LRU: 2 3 push out 1 too (it was ranked below 0); then 0 hits, 4 pushes out 3, and 1 misses.
    const trace alike{{0, 1}, {2, 3}, {0, 4}, {1, 0}};
    CHECK_EQUAL(misses_of(request_of(alike, 5, 2, 3, EVICT_BELADY)), 6);
    CHECK_EQUAL(misses_of(request_of(alike, 5, 2, 3, EVICT_LRU)), 6);
    // 0 | 1 | 2 | 0 | 1 in two places: LRU misses all five, Belady keeps 0 or 1 when 2 comes.
    const trace cycle{{0}, {1}, {2}, {0}, {1}};
    CHECK_EQUAL(misses_of(request_of(cycle, 3, 1, 2, EVICT_LRU)), 5);
    CHECK_EQUAL(misses_of(request_of(cycle, 3, 1, 2, EVICT_BELADY)), 4);
}

static void counts_what_was_used_alone() {
    simulate_result out;
    simulate_request r = request_of({{0, 1}, {2}, {0, 2}}, 4, 2, 2, EVICT_LRU);
    REQUIRE_OK(engine_simulate(r, out));
    CHECK_EQUAL(out.layers[0].references, 5);
    CHECK_EQUAL(out.layers[0].misses, 3);
}

static void replays_each_layer_from_empty() {
    simulate_request r = request_of({{0}, {1}, {0}, {0}, {2}, {2}}, 3, 1, 2, EVICT_LRU);
    r.layer_events = {3, 0, 3};
    simulate_result out;
    REQUIRE_OK(engine_simulate(r, out));
    CHECK_EQUAL(out.layers.size(), 3u);
    CHECK_EQUAL(out.layers[0].misses, 2);
    CHECK_EQUAL(out.layers[1].references, 0);
    CHECK_EQUAL(out.layers[2].misses, 2);
}

static void belady_is_the_best_that_any_choice_can_do() {
    std::mt19937 random(1);
    for (int round = 0; round < 150; round++) {
        const int experts = 4 + int(random() % 3), top_k = 1 + int(random() % 3), capacity = top_k + int(random() % 2);
        const trace events = random_trace(random, 12, experts, top_k, round % 3 == 0);
        CHECK_EQUAL(misses_of(request_of(events, experts, top_k, capacity, EVICT_BELADY)), fewest_misses(events, experts, capacity));
    }
}

static void no_policy_misses_less_than_belady() {
    std::mt19937 random(2);
    for (int round = 0; round < 40; round++) {
        const int experts = 8 + int(random() % 25), top_k = 1 + int(random() % 4), capacity = top_k + int(random() % unsigned(experts - top_k));
        const trace events = random_trace(random, 300, experts, top_k, round % 4 == 0);
        const int64_t bound = misses_of(request_of(events, experts, top_k, capacity, EVICT_BELADY));
        for (const engine_eviction policy : {EVICT_LRU, EVICT_LFU, EVICT_LFRU, EVICT_ADAPTIVE}) {
            for (const double half_life : {0.0, 16.0}) {
                simulate_request r = request_of(events, experts, top_k, capacity, policy);
                r.half_life = half_life;
                CHECK(misses_of(r) >= bound);
                CHECK_EQUAL(misses_of(r), misses_of(r));
            }
        }
    }
}

static void expect_refused(simulate_request r, engine_code code, const char * part) {
    simulate_result out;
    const engine_status status = engine_simulate(r, out);
    CHECK_EQUAL(status.code, code);
    CHECK(std::string(status.message).find(part) != std::string::npos);
}

static void refuses_what_makes_no_sense() {
    const simulate_request good = request_of({{0, 1}, {2, 3}}, 4, 2, 2, EVICT_LRU);
    simulate_request r = good;
    r.routes[3] = 4;
    expect_refused(r, ENGINE_BAD_ARGUMENT, "event 1, slot 1: expected an expert from 0 to 3");
    r.routes[3] = 2;
    expect_refused(r, ENGINE_BAD_ARGUMENT, "event 1 selects expert 2 twice");
    r.routes = {0, 1, -1, 3};
    expect_refused(r, ENGINE_BAD_ARGUMENT, "event 1, slot 1");
    r.routes = {0, 1, 2, -2};
    expect_refused(r, ENGINE_BAD_ARGUMENT, "found -2");
    r.routes.pop_back();
    expect_refused(r, ENGINE_BAD_ARGUMENT, "layerEvents");
    r = good;
    r.layer_events = {1};
    expect_refused(r, ENGINE_BAD_ARGUMENT, "expected 1 events");
    r.layer_events = {INT32_MAX, INT32_MAX, 4};
    expect_refused(r, ENGINE_BAD_ARGUMENT, "layerEvents");
    r.layer_events = {3, -1};
    expect_refused(r, ENGINE_BAD_ARGUMENT, "layerEvents");
    r = good;
    r.capacity = 1;
    expect_refused(r, ENGINE_CAPACITY, "below the 2 experts");
    r = good;
    r.top_k = 0;
    expect_refused(r, ENGINE_BAD_ARGUMENT, "topK");
    r = good;
    r.experts = 1 << 30;
    expect_refused(r, ENGINE_BAD_ARGUMENT, "experts");
    r = good;
    r.half_life = NAN;
    expect_refused(r, ENGINE_BAD_ARGUMENT, "halfLifeTokens");
    const int32_t layers = int32_t(good.layer_events.size()), events = good.layer_events[0];
    r = good;
    for (const capacity_change & bad : {capacity_change{-1, 0, 2}, capacity_change{layers, 0, 2}}) {
        r.changes = {bad};
        expect_refused(r, ENGINE_BAD_ARGUMENT, "changes: entry 0 is of layer");
    }
    r.changes = {{0, events + 1, 2}};
    expect_refused(r, ENGINE_BAD_ARGUMENT, "changes: entry 0 stands before event");
    r.changes = {{0, events, 2}, {0, 0, 2}};
    expect_refused(r, ENGINE_BAD_ARGUMENT, "changes: entry 1 stands before event");
    r.changes = {{0, 0, 1}};
    expect_refused(r, ENGINE_CAPACITY, "below the 2 experts");
}

// 3 experts in turn: with room for all each is missed once; from the change on, with room for two, LRU misses every time.
static void follows_changes_of_capacity() {
    simulate_request r;
    r.experts = 4;
    r.top_k = 1;
    r.capacity = 3;
    for (int t = 0; t < 12; t++) r.routes.push_back(t % 3);
    r.layer_events = {12};
    simulate_result result;
    REQUIRE_OK(engine_simulate(r, result));
    CHECK_EQUAL(result.layers[0].misses, 3);
    r.changes = {{0, 6, 2}};
    REQUIRE_OK(engine_simulate(r, result));
    CHECK_EQUAL(result.layers[0].misses, 3 + 6);
    r.changes = {{0, 0, 2}, {0, 6, 3}};
    REQUIRE_OK(engine_simulate(r, result));
    CHECK_EQUAL(result.layers[0].misses, 6 + 1);
}

int main() {
    counts_by_whole_events();
    counts_what_was_used_alone();
    replays_each_layer_from_empty();
    belady_is_the_best_that_any_choice_can_do();
    no_policy_misses_less_than_belady();
    follows_changes_of_capacity();
    refuses_what_makes_no_sense();
    return checks_done();
}
