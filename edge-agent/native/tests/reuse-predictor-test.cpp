#include "expert-cache.h"
#include "reuse-predictor.h"

#include "check.h"

#include <random>

// In a cache of 4.
static void observe(reuse_predictor & p, std::vector<int32_t> ids, const std::vector<float> & scores = {}, const std::vector<float> & below = {}) {
    const auto given = [](const std::vector<float> & v) { return v.empty() ? nullptr : v.data(); };
    reuse_predictor_observe(p, ids.data(), int(ids.size()), {given(scores), given(below)}, 4);
}

// Of what input `from`, of a kind, says about expert `to`.
static float weight(const reuse_predictor & p, int kind, int from, int to) { return p.weights[size_t((kind * p.width + from) * p.width + to)]; }

static void begins_with_the_mean_of_three_logarithms() {
    reuse_predictor p;
    reuse_predictor_init(p, 8);
    observe(p, {3, 5});
    // Used: each rate is 1, against a mean of 2/8. Not used: each rate is 0.
    CHECK_NEAR(p.worth[3], 0.25 * (1.02 / 0.27), 1e-5);
    CHECK_NEAR(p.worth[0], 0.25 * (0.02 / 0.27), 1e-6);
    CHECK_EQUAL(p.worth[3], p.worth[5]);
    CHECK_EQUAL(p.worth[0], p.worth[7]);
}

static void takes_one_step_by_the_definition() {
    reuse_predictor p;
    reuse_predictor_init(p, 4);
    observe(p, {1});
    const float a0 = p.shared[0], v0 = p.worth[0], v1 = p.worth[1], v2 = p.worth[2];
    observe(p, {2});
    // y = g v + (1-g) used, with 0.8 g for the used, g = 11/12 (3 turns of 4 tokens) and v as predicted before the step; the
    // constant's gradient is the mean error.
    const double g = 11.0 / 12, b = 0.25;
    const double error0 = (g * p.worth[0] - v0) / std::sqrt(b * (v0 + 1e-3));
    const double error1 = (g * p.worth[1] - v1) / std::sqrt(b * (v1 + 1e-3));
    const double error2 = (0.8 * g * p.worth[2] + (1 - g) - v2) / std::sqrt(b * (v2 + 1e-3));
    CHECK_NEAR(p.shared[0] - a0, 0.02 * (2 * error0 + error1 + error2) / 4, 1e-6);
    // Inputs of the first token, without scores: 8 (sqrt(1) - 1/2) for expert 1, 8 (0 - 1/2) for the others; then
    // sqrt(1 - 2^(-1/4)) - 1/2 and 0 - 1/2. No token was before it, and nothing is known of the layer below.
    const double chosen = 4, others = -4, recent = std::sqrt(1 - std::exp2(-0.25)) - 0.5, rest = -0.5;
    const double norm = 1 + chosen * chosen + 3 * others * others + recent * recent + 3 * rest * rest;
    const double step = 0.1 * 2 / (2 + 256) / norm;
    observe(p, {3});  // takes the step
    CHECK_NEAR(weight(p, 0, 1, 2), step * chosen * error2, 1e-7);
    CHECK_NEAR(weight(p, 0, 0, 2), step * others * error2, 1e-7);
    CHECK_NEAR(weight(p, 1, 1, 2), step * recent * error2, 1e-7);
    CHECK_NEAR(weight(p, 0, 1, 0), step * chosen * error0, 1e-7);
}

// 32 tokens of K = 2 by 8 experts, whose uses fall by e^3 over the places; what is not named shares what is left.
static void begins_with_what_a_warm_list_expects() {
    reuse_predictor p;
    reuse_predictor_init(p, 8);
    for (const int e : {5, 2, 5}) reuse_predictor_expect(p, e);
    observe(p, {0, 1});
    const double all = 1 - std::exp(-3.0), first = 2 * 3.0 / 8 * std::exp(-3.0 * 0.5 / 8) / all, second = 2 * 3.0 / 8 * std::exp(-3.0 * 1.5 / 8) / all;
    const double rest = 2 * (std::exp(-3.0 * 2 / 8) - std::exp(-3.0)) / 6 / all;
    // A token later: the rate of half-life 64 has seen 33 tokens.
    const double keep = std::exp2(-1.0 / 64), begun = 1 - std::exp2(-32.0 / 64), seen = begun * keep + 1 - keep;
    CHECK_NEAR(p.seen[1], seen, 1e-6);
    CHECK_NEAR(p.rates[p.width + 5], begun * first * keep, 1e-6);
    CHECK_NEAR(p.rates[p.width + 2], begun * second * keep, 1e-6);
    CHECK_NEAR(p.rates[p.width + 7], begun * rest * keep, 1e-6);
    CHECK_NEAR(p.rates[p.width + 0], begun * rest * keep + 1 - keep, 1e-6);
    CHECK(p.worth[5] > p.worth[2] && p.worth[2] > p.worth[7]);
    const float worth = p.worth[7];
    reuse_predictor_expect(p, 7);  // too late: uses tell more
    CHECK_EQUAL(p.worth[7], worth);
    CHECK_EQUAL(p.tokens, uint64_t(33));

    // Forgotten with everything else.
    reuse_predictor_reset(p);
    observe(p, {3, 5});
    CHECK_NEAR(p.worth[0], 0.25 * (0.02 / 0.27), 1e-6);
}

// Of two that were not used yet, the one further down the list leaves first, though it was admitted last.
static void a_warmed_cache_gives_up_the_last_of_the_list() {
    expert_cache c;
    expert_cache_init(c, 8, 4);
    expert_cache_evict_by(c, EVICT_ADAPTIVE, 0);
    for (const int e : {6, 5, 4, 3}) CHECK(expert_cache_warm(c, e));
    int32_t ids[] = {0, 1}, missed[2], evicted[2];
    cache_event event{0, 0, 0, missed, evicted};
    expert_cache_event(c, ids, 2, event);
    CHECK_EQUAL(event.evictions, 2);
    CHECK_EQUAL(evicted[0], 3);
    CHECK_EQUAL(evicted[1], 4);
}

// 0 is always followed by 1, 2 by 3; nothing else tells them apart.
static void learns_what_follows_what() {
    reuse_predictor p;
    reuse_predictor_init(p, 8);
    std::mt19937 random(1);
    for (int i = 0; i < 3000; i++) {
        const int32_t first = random() % 2 ? 0 : 2;
        observe(p, {first});
        observe(p, {first + 1});
    }
    observe(p, {0});
    const float after_0 = p.worth[1] / p.worth[3];
    observe(p, {1});
    observe(p, {2});
    const float after_2 = p.worth[1] / p.worth[3];
    CHECK(after_0 / after_2 > 1.5);  // how often and how lately each was used cancels out
}

// The router, of this layer or of the one below, nearly takes 6 one or two tokens before it is used, which only the scores tell.
static void learns_from_near_misses() {
    enum source { NONE, HERE, HERE_BEFORE, BELOW };
    const auto share = [](source from) {
        reuse_predictor p;
        reuse_predictor_init(p, 8);
        std::mt19937 random(1);
        double announced = 0, others = 0;
        int n = 0;
        for (int i = 0; i < 4000; i++) {
            const bool soon = random() % 8 == 0;
            std::vector<float> scores(8, 0.0f);
            scores[size_t(i % 4)] = 4;
            if (soon) scores[6] = 3.5f;
            const std::vector<float> none, used = {0, 0, 0, 0, 0, 0, 4, 0}, other = {0, 0, 0, 0, 0, 4, 0, 0};
            observe(p, {i % 4}, from == HERE || from == HERE_BEFORE ? scores : none, from == BELOW ? scores : none);
            if (from == HERE_BEFORE) observe(p, {5}, other);
            if (i >= 3000) {
                (soon ? announced : others) += p.worth[6];
                n += soon;
            }
            if (soon) observe(p, {6}, from == HERE || from == HERE_BEFORE ? used : none, from == BELOW ? used : none);
        }
        return announced / n / (others / (1000 - n));
    };
    CHECK(share(HERE) > 1.3);
    CHECK(share(HERE_BEFORE) > 1.3);
    CHECK(share(BELOW) > 1.3);
    CHECK(share(NONE) < 1.2);
}

// 10 million tokens would take minutes; what could grow without bound shows within a few thousand of the worst kind.
static void stays_finite_whatever_comes() {
    for (const float odd : {INFINITY, -INFINITY, NAN, 3e38f, -3e38f}) {
        reuse_predictor p;
        reuse_predictor_init(p, 16);
        std::mt19937 random(3);
        for (int i = 0; i < 3000; i++) {
            std::vector<float> scores(16);
            for (auto & s : scores) s = random() % 3 ? float(random() % 1000) / 100 - 5 : odd;
            const int32_t a = int32_t(i / 500 % 16), b = int32_t((a + 1 + random() % 15) % 16);
            observe(p, {a, b}, scores, scores);
        }
        observe(p, {0}, std::vector<float>(16, odd), std::vector<float>(16, odd));
        for (int e = 0; e < 16; e++) CHECK(std::isfinite(p.worth[size_t(e)]) && p.worth[size_t(e)] > 0);
    }
}

// Chooses by a cycle that changes its members; returns every eviction.
static std::vector<int32_t> evictions_of(expert_cache & c) {
    std::vector<int32_t> out;
    std::mt19937 random(7);
    for (int i = 0; i < 2000; i++) {
        int32_t ids[2] = {int32_t(random() % 16), 0}, missed[2], evicted[4];
        ids[1] = int32_t((ids[0] + 1 + random() % 3) % 16);
        cache_event event{0, 0, 0, missed, evicted};
        expert_cache_event(c, ids, 2, event);
        out.insert(out.end(), evicted, evicted + event.evictions);
        if (i == 1000) {
            int32_t given[16];
            const int n = expert_cache_resize(c, 4, given);
            CHECK(c.size <= 4);
            CHECK(c.resident[size_t(ids[0])] && c.resident[size_t(ids[1])]);
            out.insert(out.end(), given, given + n);
            expert_cache_resize(c, 6, given);
        }
    }
    return out;
}

static void is_a_function_of_the_events_alone() {
    expert_cache c;
    expert_cache_init(c, 16, 6);
    expert_cache_evict_by(c, EVICT_ADAPTIVE, 0);
    const std::vector<int32_t> first = evictions_of(c);
    expert_cache_evict_by(c, EVICT_ADAPTIVE, 0);  // in force already: what was learned stays, and is forgotten by the reset
    expert_cache_reset(c);
    CHECK(evictions_of(c) == first);
    CHECK(!first.empty());
}

// With room for all there is nothing to choose; a capacity that forces a choice later finds the least recent.
static void learns_only_while_it_has_to_choose() {
    expert_cache c;
    expert_cache_init(c, 16, 16);
    expert_cache_evict_by(c, EVICT_ADAPTIVE, 0);
    for (int32_t e = 0; e < 16; e++) {
        int32_t missed[1], evicted[1];
        cache_event event{0, 0, 0, missed, evicted};
        expert_cache_event(c, &e, 1, event);
    }
    CHECK_EQUAL(c.reuse.tokens, 0u);
    int32_t evicted[16];
    CHECK_EQUAL(expert_cache_resize(c, 10, evicted), 6);
    for (int i = 0; i < 6; i++) CHECK_EQUAL(evicted[i], i);
    evictions_of(c);
    CHECK_EQUAL(c.reuse.tokens, 2000u);
}

static void begins_to_learn_when_it_comes_into_force() {
    expert_cache c;
    expert_cache_init(c, 16, 6);
    evictions_of(c);
    CHECK_EQUAL(c.size, 6);
    CHECK_EQUAL(c.reuse.experts, 0);
    expert_cache_evict_by(c, EVICT_ADAPTIVE, 0);
    int32_t evicted[16];
    const uint64_t before = c.evictions;
    CHECK_EQUAL(expert_cache_resize(c, 3, evicted), 3);  // nothing learned yet: the least recent go
    CHECK_EQUAL(c.evictions, before + 3);
    evictions_of(c);
    CHECK(c.reuse.tokens == 2000);
    expert_cache_evict_by(c, EVICT_LRU, 0);
    evictions_of(c);
    CHECK_EQUAL(c.reuse.tokens, 2000);
    expert_cache_evict_by(c, EVICT_ADAPTIVE, 0);
    CHECK_EQUAL(c.reuse.tokens, 0);
}

// The definition in reuse-predictor.h, in doubles and one expert after the other. `a`, `w`, f and u are named as there.
struct definition {
    int experts, capacity, tokens = 0, uses = 0;
    std::vector<double> rates[3], trace, f[4], u, worth, a = {0, 1.0 / 3, 1.0 / 3, 1.0 / 3};
    std::vector<std::vector<double>> w;

    definition(int experts, int capacity) : experts(experts), capacity(capacity), trace(experts), u(4 * experts), worth(experts), w(experts, std::vector<double>(4 * experts)) {
        for (auto & each : rates) each.resize(experts);
        for (auto & each : f) each.resize(experts);
    }

    void put_scores(const std::vector<float> & z, double * out) const {
        double total = 0;
        for (const float each : z) total += std::exp(double(each));
        for (int e = 0; e < experts; e++) out[e] = 8 * (std::sqrt(std::exp(double(z[e])) / total) - std::sqrt(1.0 / experts));
    }

    void observe(const std::vector<int32_t> & ids, const std::vector<float> & here, const std::vector<float> & below) {
        const std::vector<double> before = worth, u_before = u, f_before[4] = {f[0], f[1], f[2], f[3]};
        std::vector<bool> used(experts);
        for (const int32_t e : ids) used[e] = true;
        tokens++;
        uses += int(ids.size());
        const double b = double(uses) / tokens / experts, half_lives[3] = {8, 64, 512};
        for (int e = 0; e < experts; e++) {
            f[0][e] = 1;
            for (int r = 0; r < 3; r++) {
                const double keep = std::exp2(-1 / half_lives[r]), seen = 1 - std::pow(keep, tokens);
                rates[r][e] = rates[r][e] * keep + (used[e] ? 1 - keep : 0);
                f[1 + r][e] = std::log((rates[r][e] / seen + 0.02) / (b + 0.02));
            }
            trace[e] = trace[e] * std::exp2(-0.25) + (used[e] ? 1 - std::exp2(-0.25) : 0);
        }
        put_scores(here, &u[0]);
        for (int e = 0; e < experts; e++) u[experts + e] = std::sqrt(trace[e]) - std::sqrt(b);
        for (int e = 0; e < experts; e++) u[2 * experts + e] = 0.5 * u_before[e];
        put_scores(below, &u[3 * experts]);
        for (int e = 0; e < experts; e++) {
            double exponent = 0;
            for (int j = 0; j < 4; j++) exponent += a[j] * f[j][e];
            for (int i = 0; i < 4 * experts; i++) exponent += w[e][i] * u[i];
            worth[e] = b * std::exp(std::min(4.0, std::max(-6.0, exponent)));
        }
        if (tokens > 1) learn(used, b, before, u_before, f_before);
    }

    void learn(const std::vector<bool> & used, double b, const std::vector<double> & before, const std::vector<double> & u_before, const std::vector<double> * f_before) {
        const double g = 1 - 1 / std::min(20.0, std::max(4.0, 3.0 * capacity * tokens / uses));
        double norm = 1, shared[4] = {};
        for (const double each : u_before) norm += each * each;
        for (int e = 0; e < experts; e++) {
            const double y = used[e] ? 1 - g + 0.8 * g * worth[e] : g * worth[e], error = (y - before[e]) / std::sqrt(b * (before[e] + 1e-3));
            for (int j = 0; j < 4; j++) shared[j] += error * f_before[j][e] / experts;
            for (int i = 0; i < 4 * experts; i++) w[e][i] += 0.1 * tokens / (tokens + 256) / norm * error * u_before[i];
        }
        for (int j = 0; j < 4; j++) a[j] += 0.02 * shared[j];
    }
};

// For numbers of experts that fill 1, 2, 3, 4 and 5 times the lanes, and those that do not.
static void follows_the_definition() {
    for (const int experts : {5, 16, 32, 43, 64, 65}) {
        reuse_predictor p;
        reuse_predictor_init(p, experts);
        definition defined(experts, 4);
        std::mt19937 random(13);
        double farthest = 0;
        for (int t = 0; t < 400; t++) {
            const auto row = [&] {
                std::vector<float> z(experts);
                for (float & each : z) each = random() % 8 ? float(random() % 1000) / 100 - 5 : -INFINITY;
                z[random() % experts] = 1;
                return z;
            };
            const int first = int(random() % experts);
            std::vector<int32_t> ids = {first, (first + 1 + t / 50) % experts};
            if (t % 3 == 0) ids.pop_back();
            const std::vector<float> here = row(), below = row();
            observe(p, ids, here, below);
            defined.observe(ids, here, below);
            for (int e = 0; e < experts; e++) farthest = std::max(farthest, std::fabs(p.worth[e] / defined.worth[e] - 1));
        }
        CHECK(farthest < 2e-5);
        CHECK_NEAR(p.shared[0], defined.a[0], 1e-5);
        for (int kind = 0; kind < 4; kind++) {
            const double due = double(p.inputs_before[size_t(kind * p.width + 1)]) * double(p.step[2]);
            CHECK_NEAR(weight(p, kind, 1, 2) + due, defined.w[2][kind * experts + 1], 1e-6);
        }
    }
}

// 43 experts are read as 32 and 11: with the same events under other numbers each is worth the same, save for rounding.
static void does_not_care_which_number_an_expert_has() {
    const int experts = 43, turn = 17;
    reuse_predictor p, turned;
    reuse_predictor_init(p, experts);
    reuse_predictor_init(turned, experts);
    std::mt19937 random(11);
    std::vector<float> scores(experts), turned_scores(experts), below(experts), turned_below(experts);
    for (int t = 0; t < 300; t++) {
        const int first = int(random() % experts);
        const std::vector<int32_t> ids = {first, (first + 1 + t % 7) % experts, (first + 20) % experts};
        std::vector<int32_t> turned_ids;
        for (const int32_t id : ids) turned_ids.push_back((id + turn) % experts);
        for (int e = 0; e < experts; e++) {
            turned_scores[(e + turn) % experts] = scores[e] = float(random() % 1000) / 200;
            turned_below[(e + turn) % experts] = below[e] = e % 10 == t % 10 ? -INFINITY : float(random() % 1000) / 200;
        }
        observe(p, ids, scores, below);
        observe(turned, turned_ids, turned_scores, turned_below);
    }
    for (int e = 0; e < experts; e++) CHECK_NEAR(turned.worth[(e + turn) % experts] / p.worth[e], 1, 1e-3);
    for (int i = 0; i < experts; i++) {
        for (int e = 0; e < experts; e++) CHECK_NEAR(weight(turned, 0, (i + turn) % experts, (e + turn) % experts), weight(p, 0, i, e), 1e-5);
    }
}

int main() {
    begins_with_the_mean_of_three_logarithms();
    begins_with_what_a_warm_list_expects();
    a_warmed_cache_gives_up_the_last_of_the_list();
    takes_one_step_by_the_definition();
    follows_the_definition();
    learns_what_follows_what();
    learns_from_near_misses();
    stays_finite_whatever_comes();
    is_a_function_of_the_events_alone();
    does_not_care_which_number_an_expert_has();
    learns_only_while_it_has_to_choose();
    begins_to_learn_when_it_comes_into_force();
    return checks_done();
}
