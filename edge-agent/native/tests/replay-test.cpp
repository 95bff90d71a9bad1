#include "expert-cache.h"

#include "check.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <set>

using trace = std::vector<std::vector<int32_t>>;

static route_trace trace_of(const trace & events, int experts, int top_k) {
    route_trace t;
    t.experts = experts;
    t.top_k = top_k;
    t.layer_events = {int32_t(events.size())};
    for (const auto & ids : events) {
        t.routes.insert(t.routes.end(), ids.begin(), ids.end());
        t.routes.resize(t.routes.size() + size_t(top_k) - ids.size(), -1);
    }
    return t;
}

static engine_spec spec_of(engine_eviction eviction, int capacity, size_t layers = 1) {
    engine_spec spec;
    spec.eviction = eviction;
    spec.capacities.assign(layers, capacity);
    return spec;
}

static replay_request request_of(const trace & events, int experts, int top_k, int capacity, engine_eviction eviction) {
    replay_request r;
    r.trace = trace_of(events, experts, top_k);
    r.what_ifs = {spec_of(eviction, capacity)};
    return r;
}

// Of the only what-if.
static std::vector<replayed_layer> layers_of(const replay_request & r) {
    replay_result out;
    REQUIRE_OK(engine_replay(r, {}, out));
    return out.what_ifs[0];
}

static int64_t misses_of(const replay_request & r) {
    int64_t misses = 0;
    for (const replayed_layer & layer : layers_of(r)) misses += layer.misses;
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
    const replay_request lru = request_of({{0, 1}, {2, 1}}, 8, 2, 2, EVICT_LRU);
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
    const replay_request r = request_of({{0, 1}, {2}, {0, 2}}, 4, 2, 2, EVICT_LRU);
    const replayed_layer layer = layers_of(r)[0];
    CHECK_EQUAL(layer.hits + layer.misses, 5);
    CHECK_EQUAL(layer.misses, 3);
}

static void replays_each_layer_from_empty() {
    replay_request r = request_of({{0}, {1}, {0}, {0}, {2}, {2}}, 3, 1, 2, EVICT_LRU);
    r.trace.layer_events = {3, 0, 3};
    r.what_ifs[0].capacities = {2, 2, 2};
    const std::vector<replayed_layer> layers = layers_of(r);
    CHECK_EQUAL(layers.size(), 3u);
    CHECK_EQUAL(layers[0].misses, 2);
    CHECK_EQUAL(layers[1].events, 0);
    CHECK_EQUAL(layers[2].misses, 2);
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
                replay_request r = request_of(events, experts, top_k, capacity, policy);
                r.what_ifs[0].eviction_half_life = half_life;
                CHECK(misses_of(r) >= bound);
                CHECK_EQUAL(misses_of(r), misses_of(r));
            }
        }
    }
}

static void expect_refused(const replay_request & r, engine_code code, const char * part) {
    replay_result out;
    const engine_status status = engine_replay(r, {}, out);
    CHECK_EQUAL(status.code, code);
    CHECK(std::string(status.message).find(part) != std::string::npos);
}

static void refuses_what_makes_no_sense() {
    const replay_request good = request_of({{0, 1}, {2, 3}}, 4, 2, 2, EVICT_LRU);
    replay_request r = good;
    r.trace.routes[3] = 4;
    expect_refused(r, ENGINE_BAD_ARGUMENT, "event 1, slot 1: expected an expert from 0 to 3");
    r.trace.routes[3] = 2;
    expect_refused(r, ENGINE_BAD_ARGUMENT, "event 1 selects expert 2 twice");
    r.trace.routes = {0, 1, -1, 3};
    expect_refused(r, ENGINE_BAD_ARGUMENT, "event 1, slot 1");
    r.trace.routes = {0, 1, 2, -2};
    expect_refused(r, ENGINE_BAD_ARGUMENT, "found -2");
    r.trace.routes.pop_back();
    expect_refused(r, ENGINE_BAD_ARGUMENT, "expected 2 events of 2 experts, found 3 ids");
    r.trace.routes.clear();
    expect_refused(r, ENGINE_BAD_ARGUMENT, "found 0 ids");
    r = good;
    r.trace.layer_events = {1};
    expect_refused(r, ENGINE_BAD_ARGUMENT, "expected 1 events");
    r.trace.layer_events = {INT32_MAX, INT32_MAX, 4};
    expect_refused(r, ENGINE_BAD_ARGUMENT, "routes");
    r.trace.layer_events = {3, -1};
    expect_refused(r, ENGINE_BAD_ARGUMENT, "layerEvents");
    r = good;
    r.what_ifs[0].capacities = {1};
    expect_refused(r, ENGINE_CAPACITY, "below the 2 experts");
    r.what_ifs[0].capacities = {2, 2};
    expect_refused(r, ENGINE_BAD_ARGUMENT, "capacities");
    r = good;
    r.what_ifs.push_back(spec_of(EVICT_LRU, 5));
    expect_refused(r, ENGINE_BAD_ARGUMENT, "at most the layer's 4 experts");
    r = good;
    r.trace.top_k = 0;
    expect_refused(r, ENGINE_BAD_ARGUMENT, "topK");
    r = good;
    r.trace.experts = 1 << 30;
    expect_refused(r, ENGINE_BAD_ARGUMENT, "experts");
    r = good;
    r.what_ifs[0].eviction_half_life = NAN;
    expect_refused(r, ENGINE_BAD_ARGUMENT, "HalfLifeTokens");
    r = good;
    r.uncounted = -1;
    expect_refused(r, ENGINE_BAD_ARGUMENT, "uncounted");
    const int32_t layers = int32_t(good.trace.layer_events.size()), events = good.trace.layer_events[0];
    r = good;
    for (const cache_change & bad : {cache_change{-1, 0, 2}, cache_change{layers, 0, 2}}) {
        r.trace.changes = {bad};
        expect_refused(r, ENGINE_BAD_ARGUMENT, "changes: entry 0 is of layer");
    }
    r.trace.changes = {{0, events + 1, 2}};
    expect_refused(r, ENGINE_BAD_ARGUMENT, "changes: entry 0 stands before event");
    r.trace.changes = {{0, events, 2}, {0, 0, 2}};
    expect_refused(r, ENGINE_BAD_ARGUMENT, "changes: entry 1 stands before event");
    r.trace.changes = {{0, 0, 1}};
    expect_refused(r, ENGINE_CAPACITY, "below the 2 experts");
}

static void bends_no_record_of_choices_alone() {
    replay_request r = request_of({{0, 1}, {2, 3}}, 4, 2, 2, EVICT_LRU);
    r.what_ifs[0].routing = ROUTING_CACHE_PRIOR;
    CHECK_EQUAL(misses_of(r), 4);
    r.what_ifs[0].lambda = 0.1;
    expect_refused(r, ENGINE_BAD_ARGUMENT, "not the router's scores");
    r.what_ifs[0] = spec_of(EVICT_LRU, 2);
    r.what_ifs[0].routing = ROUTING_MAX_RANK;
    r.what_ifs[0].max_rank = 3;
    expect_refused(r, ENGINE_BAD_ARGUMENT, "not the router's scores");
}

// 3 experts in turn: with room for all each is missed once; from the change on, with room for two, LRU misses every time.
static void follows_changes_of_capacity() {
    replay_request r = request_of({}, 4, 1, 3, EVICT_LRU);
    for (int t = 0; t < 12; t++) r.trace.routes.push_back(t % 3);
    r.trace.layer_events = {12};
    CHECK_EQUAL(misses_of(r), 3);
    r.trace.changes = {{0, 6, 2}};
    CHECK_EQUAL(misses_of(r), 3 + 6);
    r.trace.changes = {{0, 0, 2}, {0, 6, 3}};
    CHECK_EQUAL(misses_of(r), 6 + 1);
}

// Scores of two layers, token by token. Their top-K follows from them.
static route_trace random_scores(std::mt19937 & random, int tokens, int layers, int experts, int top_k) {
    route_trace t;
    t.experts = experts;
    t.top_k = top_k;
    t.layer_events.assign(size_t(layers), tokens);
    std::normal_distribution<float> normal;
    for (int i = 0; i < tokens * layers * experts; i++) t.scores.push_back(normal(random) + float(i % experts) / float(experts));
    return t;
}

// A layer of the trace as a device would route it, written from the definitions: choose, count, then the cache's event.
static replayed_layer route_by_hand(const route_trace & t, const engine_spec & spec, int layer) {
    expert_cache cache;
    expert_cache_init(cache, t.experts, spec.capacities[size_t(layer)]);
    expert_cache_evict_by(cache, spec.eviction, spec.eviction_half_life);
    const int layers = int(t.layer_events.size());
    double ranges = 0;
    replayed_layer out;
    for (int32_t i = 0; i < t.layer_events[size_t(layer)]; i++) {
        const float * z = &t.scores[size_t((i * layers + layer) * t.experts)];
        std::vector<int32_t> order(size_t(t.experts), 0);
        for (int e = 0; e < t.experts; e++) order[size_t(e)] = e;
        std::stable_sort(order.begin(), order.end(), [z](int32_t a, int32_t b) { return z[a] > z[b]; });
        const std::set<int32_t> own(order.begin(), order.begin() + t.top_k);
        ranges += double(z[order.front()] - z[order.back()]);
        std::vector<float> score(size_t(t.experts), 0.0f);
        for (int r = 0; r < t.experts; r++) {
            const int32_t e = order[size_t(r)];
            score[size_t(e)] = cache.resident[size_t(e)] || r < spec.top_j ? z[e] + float(spec.lambda * ranges / (i + 1)) : z[e];
        }
        std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return score[size_t(a)] > score[size_t(b)]; });
        for (int r = 0; r < t.top_k; r++) out.swaps += own.count(order[size_t(r)]) == 0;
        int32_t missed[8], evicted[8];
        cache_event event{0, 0, 0, missed, evicted};
        expert_cache_event(cache, order.data(), t.top_k, event);
        out.misses += event.misses;
    }
    return out;
}

static void replays_scores_as_a_device_routes_them() {
    std::mt19937 random(4);
    for (const double lambda : {0.0, 0.1, 0.4}) {
        replay_request r;
        r.trace = random_scores(random, 500, 2, 16, 3);
        engine_spec spec = spec_of(EVICT_LFU, 6, 2);
        spec.routing = ROUTING_CACHE_PRIOR;
        spec.lambda = lambda;
        spec.top_j = 1;
        r.what_ifs = {spec};
        const std::vector<replayed_layer> layers = layers_of(r);
        for (int l = 0; l < 2; l++) {
            const replayed_layer expected = route_by_hand(r.trace, spec, l);
            CHECK_EQUAL(layers[size_t(l)].misses, expected.misses);
            CHECK_EQUAL(layers[size_t(l)].swaps, expected.swaps);
            CHECK_EQUAL(layers[size_t(l)].events, 500);
            CHECK(lambda == 0 ? layers[size_t(l)].mass_lost == 0 : layers[size_t(l)].mass_lost > 0);
        }
    }
}

// Levels that are scores exactly: the two kinds of trace are one.
static void reads_rows_at_a_byte_each() {
    std::mt19937 random(5);
    const int experts = 12, tokens = 200;
    replay_request exact;
    exact.trace = random_scores(random, tokens, 1, experts, 2);
    exact.trace.rows_mask = true;
    replay_request rows = exact;
    rows.trace.scores.clear();
    for (int t = 0; t < tokens; t++) {
        const float minimum = -2, step = 0.25f;
        uint8_t head[8];
        memcpy(head, &minimum, 4);
        memcpy(head + 4, &step, 4);
        rows.trace.rows.insert(rows.trace.rows.end(), head, head + 8);
        for (int e = 0; e < experts; e++) {
            const bool masked = e == 3;
            const int level = int(random() % 40);
            rows.trace.rows.push_back(masked ? 255 : uint8_t(level));
            exact.trace.scores[size_t(t * experts + e)] = masked ? -INFINITY : minimum + step * float(level);
        }
    }
    engine_spec spec = spec_of(EVICT_ADAPTIVE, 5);
    spec.routing = ROUTING_CACHE_PRIOR;
    spec.lambda = 0.3;
    exact.what_ifs = rows.what_ifs = {spec};
    CHECK_EQUAL(misses_of(rows), misses_of(exact));
    rows.trace.rows.pop_back();
    expect_refused(rows, ENGINE_BAD_ARGUMENT, "rows: expected 200 events of 20");
    rows.trace.rows.push_back(0);
    for (int e = 0; e < experts - 1; e++) rows.trace.rows[size_t(20 * 7 + 8 + e)] = 255;
    expect_refused(rows, ENGINE_BAD_ARGUMENT, "event 7 of layer 0 has 1 experts with a finite score");
    const float nothing = NAN;
    memcpy(&rows.trace.rows[20], &nothing, 4);
    expect_refused(rows, ENGINE_BAD_ARGUMENT, "event 1 of layer 0 has 0 experts");
}

static void bounds_only_what_is_not_bent() {
    std::mt19937 random(6);
    replay_request r;
    r.trace = random_scores(random, 50, 1, 8, 2);
    r.what_ifs = {spec_of(EVICT_BELADY, 4)};
    misses_of(r);
    r.what_ifs[0].routing = ROUTING_CACHE_PRIOR;
    misses_of(r);
    r.what_ifs[0].lambda = 0.1;
    expect_refused(r, ENGINE_BAD_ARGUMENT, "'belady' is told which experts come");
}

// Every capacity of the curve against a replay of its own, lifetimes too, with and without tokens that only fill the cache.
static void one_pass_gives_lru_at_every_capacity() {
    std::mt19937 random(7);
    for (int round = 0; round < 30; round++) {
        const int experts = 5 + int(random() % 28), top_k = 1 + int(random() % 4);
        replay_request r;
        r.trace = trace_of(random_trace(random, 400, experts, top_k, round % 3 == 0), experts, top_k);
        r.uncounted = round % 2 ? 0 : 100;
        lru_curve curve;
        REQUIRE_OK(engine_lru_curve(r.trace, r.uncounted, curve));
        CHECK_EQUAL(curve.layers.size(), 1u);
        const lru_curve_layer & at = curve.layers[0];
        for (int capacity = top_k; capacity <= experts; capacity++) {
            r.what_ifs = {spec_of(EVICT_LRU, capacity)};
            const replayed_layer layer = layers_of(r)[0];
            CHECK_EQUAL(at.references, layer.hits + layer.misses);
            CHECK_EQUAL(at.misses[size_t(capacity)], layer.misses);
            CHECK_EQUAL(at.evictions[size_t(capacity)], layer.evictions);
            CHECK_EQUAL(at.lifetime_tokens[size_t(capacity)], layer.lifetime_tokens);
        }
    }
    route_trace changing = trace_of({{0}, {1}}, 3, 1);
    changing.changes = {{0, 1, 2}};
    lru_curve curve;
    CHECK_EQUAL(engine_lru_curve(changing, 0, curve).code, ENGINE_BAD_ARGUMENT);
}

int main() {
    counts_by_whole_events();
    counts_what_was_used_alone();
    replays_each_layer_from_empty();
    belady_is_the_best_that_any_choice_can_do();
    no_policy_misses_less_than_belady();
    follows_changes_of_capacity();
    replays_scores_as_a_device_routes_them();
    reads_rows_at_a_byte_each();
    bends_no_record_of_choices_alone();
    bounds_only_what_is_not_bent();
    one_pass_gives_lru_at_every_capacity();
    refuses_what_makes_no_sense();
    return checks_done();
}
