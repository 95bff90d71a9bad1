#include "engine-fixture.h"
#include "expert-cache.h"

#include <cstring>

// A stepped evaluation tells of each token what it took; the parts add up to the whole.
static void check_steps(const evaluate_result & r, bool stepped) {
    CHECK_EQUAL(r.steps.size(), stepped ? size_t(r.tokens) : size_t(0));
    int64_t hits = 0, misses = 0, before = 0;
    for (const evaluate_step & s : r.steps) {
        CHECK(s.start_ns >= before && s.end_ns > s.start_ns && s.stall_ns <= s.end_ns - s.start_ns && s.flash_bytes >= 0);
        before = s.end_ns;
        hits += s.hits;
        misses += s.misses;
    }
    if (stepped) CHECK(hits == r.hits && misses == r.misses);
}

static evaluate_result evaluate(engine * e, const std::vector<int32_t> & tokens, const engine_spec & spec, bool stepped) {
    evaluate_request request;
    request.tokens = tokens;
    request.context = 256;
    request.spec = spec;
    request.stepped = stepped;
    evaluate_result result;
    REQUIRE_OK(engine_evaluate(e, request, nullptr, result));
    CHECK_EQUAL(result.tokens, int64_t(tokens.size()) - 1);
    const double slots = double(result.tokens * 6 * 4);
    CHECK_NEAR(double(result.hits + result.misses) + result.drop_rate * slots, slots, 1e-6);
    double sum = 0;
    for (const float nll : result.token_nll) sum += nll;
    CHECK_NEAR(sum / double(result.tokens), result.cross_entropy, 1e-6);
    check_steps(result, stepped);
    return result;
}

static std::vector<int32_t> first(const std::vector<int32_t> & tokens, size_t n) {
    return std::vector<int32_t>(tokens.begin(), tokens.begin() + long(n) + 1);
}

static void capacity_does_not_change_the_model(engine * e, const std::vector<int32_t> & tokens) {
    const double ce = evaluate(e, first(tokens, 1024), spec_of(0, 32), false).cross_entropy;
    for (const int capacity : {4, 8, 16}) {
        const evaluate_result r = evaluate(e, first(tokens, 1024), spec_of(0, capacity), false);
        CHECK(r.cross_entropy == ce);
        CHECK_NEAR(r.mass_lost, 0, 0);
        CHECK_NEAR(r.swap_rate, 0, 0);
    }
    engine_spec original = spec_of(0.5, 8);
    original.routing = ROUTING_ORIGINAL;
    CHECK(evaluate(e, first(tokens, 1024), original, false).cross_entropy == ce);
}

static engine_spec method_of(engine_routing routing, int capacity, int top_j = 2) {
    engine_spec spec = spec_of(0.2, capacity, top_j);
    spec.routing = routing;
    spec.max_rank = 12;
    spec.mass_threshold = 0.7;
    spec.rank = 4;
    spec.seed = 3;
    return spec;
}

static void the_mildest_setting_is_the_model_itself(engine * e, const std::vector<int32_t> & tokens) {
    engine_spec original = spec_of(0, 8);
    original.routing = ROUTING_ORIGINAL;
    const evaluate_result own = evaluate(e, first(tokens, 512), original, false);
    engine_spec max_rank = method_of(ROUTING_MAX_RANK, 8), threshold = method_of(ROUTING_CUMULATIVE_THRESHOLD, 8),
                late = spec_of(0.5, 8), by_layer = spec_of(0.5, 8);
    max_rank.max_rank = 4;
    threshold.mass_threshold = 0;
    late.first_biased_layer = 6;
    by_layer.lambdas.assign(6, 0);
    for (const engine_spec & spec : {max_rank, threshold, method_of(ROUTING_PRUNED, 8, 4), spec_of(0, 8), late, by_layer}) {
        const evaluate_result same = evaluate(e, first(tokens, 512), spec, false);
        CHECK(same.token_nll == own.token_nll);
        CHECK_EQUAL(same.misses, own.misses);
        CHECK_EQUAL(same.swap_rate, 0);
        CHECK_EQUAL(same.mass_lost, 0);
        CHECK_EQUAL(same.drop_rate, 0);
    }
}

static void each_method_agrees_with_stepped(engine * e, const std::vector<int32_t> & tokens) {
    const char * names[] = {"original", "cache_prior", "max_rank", "cumulative_threshold", "pruned", "sensitivity"};
    for (const engine_routing routing : {ROUTING_MAX_RANK, ROUTING_CUMULATIVE_THRESHOLD, ROUTING_PRUNED, ROUTING_SENSITIVITY}) {
        const engine_spec spec = method_of(routing, 12);
        const evaluate_result batched = evaluate(e, first(tokens, 1024), spec, false);
        const evaluate_result stepped = evaluate(e, first(tokens, 1024), spec, true);
        printf("%s: batched %.5f nats %.4f missed, stepped %.5f nats %.4f missed; %.4f swapped %.4f dropped\n", names[routing],
               batched.cross_entropy, batched.miss_rate, stepped.cross_entropy, stepped.miss_rate, batched.swap_rate, batched.drop_rate);
        CHECK_NEAR(batched.cross_entropy, stepped.cross_entropy, 0.002);
        CHECK_NEAR(batched.miss_rate, stepped.miss_rate, 0.005);
        CHECK_NEAR(batched.swap_rate, stepped.swap_rate, 0.005);
        CHECK_NEAR(batched.drop_rate, stepped.drop_rate, 0.005);
        CHECK_EQUAL(batched.drop_rate > 0, routing == ROUTING_PRUNED);
        CHECK_EQUAL(batched.swap_rate > 0, routing != ROUTING_PRUNED);
        if (routing == ROUTING_SENSITIVITY) CHECK_EQUAL(batched.swap_rate, 0.25);
    }
}

static void each_eviction_agrees_with_stepped(engine * e, const std::vector<int32_t> & tokens) {
    double lru = 0;
    for (const engine_eviction eviction : {EVICT_LRU, EVICT_LFU, EVICT_LFRU}) {
        engine_spec spec = spec_of(0.1, 12);
        spec.eviction = eviction;
        spec.eviction_half_life = eviction == EVICT_LFU ? 64 : 0;
        const evaluate_result batched = evaluate(e, first(tokens, 1024), spec, false);
        const evaluate_result stepped = evaluate(e, first(tokens, 1024), spec, true);
        CHECK_NEAR(batched.cross_entropy, stepped.cross_entropy, 0.002);
        CHECK_NEAR(batched.miss_rate, stepped.miss_rate, 0.005);
        if (eviction == EVICT_LRU) lru = batched.miss_rate;
        else CHECK(batched.miss_rate < lru);
    }
}

static void layers_can_differ(engine * e, const std::vector<int32_t> & tokens) {
    engine_spec same = spec_of(0, 8), late = spec_of(0.3, 8), some = spec_of(0.3, 8);
    same.lambdas.assign(6, 0.3);
    same.top_js.assign(6, 2);
    late.first_biased_layer = 2;
    some.lambdas = {0, 0.3, 0, 0.3, 0, 0.3};
    some.top_js = {0, 0, 0, 4, 0, 0};
    const std::vector<int32_t> text = first(tokens, 512);
    CHECK(evaluate(e, text, same, false).token_nll == evaluate(e, text, spec_of(0.3, 8), false).token_nll);
    const evaluate_result from_two = evaluate(e, text, late, false), mixed = evaluate(e, text, some, false);
    for (size_t l = 0; l < 6; l++) {
        CHECK_EQUAL(from_two.per_layer[l].swap_rate > 0, l >= 2);
        CHECK_EQUAL(mixed.per_layer[l].swap_rate > 0, l == 1 || l == 5);
    }
}

static evaluate_result evaluate_after_prompt(engine * e, const std::vector<int32_t> & tokens, const engine_spec & spec, int prompt,
                                             bool stepped) {
    evaluate_request request;
    request.tokens = tokens;
    request.context = 256;
    request.prompt_tokens = prompt;
    request.spec = spec;
    request.stepped = stepped;
    request.record_routes = true;
    evaluate_result result;
    REQUIRE_OK(engine_evaluate(e, request, nullptr, result));
    return result;
}

// Share of equal choices of all layers but the last, which a prompt does not compute.
static double same_choices(const evaluate_result & a, const evaluate_result & b, size_t tokens) {
    int same = 0;
    for (size_t token = 0; token < tokens; token++) {
        for (size_t i = 0; i < 5 * 4; i++) same += a.routes[token * 24 + i] == b.routes[token * 24 + i];
    }
    return same / double(tokens * 20);
}

static void a_prompt_is_routed_by_the_model_and_not_scored(engine * e, const std::vector<int32_t> & tokens) {
    const std::vector<int32_t> text = first(tokens, 1024);
    const evaluate_result own = evaluate_after_prompt(e, text, spec_of(0, 12), 0, false);
    engine_spec bent = spec_of(0.3, 12), bent_throughout = bent;
    bent_throughout.bias_prefill = true;
    const evaluate_result unbiased = evaluate_after_prompt(e, text, bent, 128, false);
    const evaluate_result biased = evaluate_after_prompt(e, text, bent_throughout, 128, false);
    const size_t per_token = 6 * 4;
    for (const evaluate_result * r : {&unbiased, &biased}) {
        CHECK_EQUAL(r->tokens, 512);
        CHECK_EQUAL(r->token_nll.size(), 512u);
        CHECK_EQUAL(r->hits + r->misses, int64_t(512 * per_token));
        CHECK_EQUAL(r->routes.size(), 1024 * per_token);
        CHECK_EQUAL(r->windows.size(), 4u);
        double nll = 0;
        int64_t misses = 0;
        for (const window_result & w : r->windows) {
            nll += w.nll;
            misses += w.misses;
        }
        CHECK_NEAR(nll / 512, r->cross_entropy, 1e-9);
        CHECK_EQUAL(misses, r->misses);
        CHECK(r->prompt_misses > 0);
    }
    // The first prompt of the text: no scored token came before it.
    CHECK(same_choices(unbiased, own, 128) > 0.999);
    CHECK(same_choices(biased, own, 128) < 0.95);
    // A prompt bent throughout and a text without one are routed alike.
    CHECK(same_choices(biased, evaluate_after_prompt(e, text, bent, 0, false), 128) > 0.999);
    // The last layer: nothing of a prompt but its last token, which asks for the first one that follows.
    CHECK_EQUAL(unbiased.routes[126 * per_token + 20], -1);
    CHECK(unbiased.routes[127 * per_token + 20] >= 0);
    for (size_t token = 128; token < 256; token++) CHECK(unbiased.routes[token * per_token + 20] >= 0);

    const evaluate_result stepped = evaluate_after_prompt(e, text, bent, 128, true);
    CHECK_NEAR(stepped.cross_entropy, unbiased.cross_entropy, 0.002);
    CHECK_NEAR(stepped.miss_rate, unbiased.miss_rate, 0.005);

    evaluate_request request;
    request.tokens = text;
    request.context = 256;
    request.spec = spec_of(0, 12);
    evaluate_result result;
    for (const int wrong : {-1, 256}) {
        request.prompt_tokens = wrong;
        CHECK_EQUAL(engine_evaluate(e, request, nullptr, result).code, ENGINE_BAD_ARGUMENT);
    }
}

// A replay of the recorded routes through a cache of the same kind counts the same.
static void recorded_routes_replay_to_the_same_misses(engine * e, const std::vector<int32_t> & tokens) {
    for (const engine_routing routing : {ROUTING_CACHE_PRIOR, ROUTING_PRUNED}) {
        const evaluate_result r = evaluate_after_prompt(e, first(tokens, 1024), method_of(routing, 12), 0, false);
        int64_t misses = 0, dropped = 0;
        for (int layer = 0; layer < 6; layer++) {
            expert_cache cache;
            expert_cache_init(cache, 32, 12);
            for (size_t token = 0; token < 1024; token++) {
                const int32_t * ids = &r.routes[(token * 6 + size_t(layer)) * 4];
                int32_t missed[4], evicted[4];
                int k = 0;
                while (k < 4 && ids[k] >= 0) k++;
                dropped += 4 - k;
                cache_event event{0, 0, 0, missed, evicted};
                expert_cache_event(cache, ids, k, event);
                misses += event.misses;
            }
        }
        CHECK_EQUAL(misses, r.misses);
        CHECK_NEAR(double(dropped) / (1024 * 24), r.drop_rate, 1e-9);
    }
}

static void a_better_rank_costs_more_to_replace(engine * e, const std::vector<int32_t> & tokens) {
    const auto score = [&](int rank, uint64_t seed) {
        engine_spec spec = method_of(ROUTING_SENSITIVITY, 32);
        spec.rank = rank;
        spec.seed = seed;
        return evaluate(e, first(tokens, 1024), spec, false).cross_entropy;
    };
    const double own = evaluate(e, first(tokens, 1024), spec_of(0, 32), false).cross_entropy;
    const double best = score(1, 3), last = score(4, 3);
    printf("rank 1 replaced: %+.4f nats, rank 4: %+.4f\n", best - own, last - own);
    CHECK(best > last && last > own);
    CHECK(score(4, 3) == last);
    CHECK(score(4, 4) != last);
}

static void refuses_what_a_method_cannot_use(engine * e) {
    const auto says = [&](const engine_spec & spec, const char * what) {
        const engine_status status = engine_apply(e, spec);
        CHECK_EQUAL(status.code, ENGINE_BAD_ARGUMENT);
        if (strstr(status.message, what) == nullptr) fprintf(stderr, "said: %s\n", status.message);
        CHECK(strstr(status.message, what) != nullptr);
    };
    engine_spec spec = method_of(ROUTING_MAX_RANK, 8);
    spec.max_rank = 3;
    says(spec, "maxRank: expected 4");
    spec.max_rank = 33;
    says(spec, "maxRank");
    spec = method_of(ROUTING_CUMULATIVE_THRESHOLD, 8);
    for (const double wrong : {-0.1, 1.1, double(NAN)}) {
        spec.mass_threshold = wrong;
        says(spec, "massThreshold: expected 0");
    }
    spec = method_of(ROUTING_SENSITIVITY, 8);
    for (const int wrong : {0, 5}) {
        spec.rank = wrong;
        says(spec, "rank: expected 1");
    }
    says(method_of(ROUTING_PRUNED, 8, 0), "topJ: 'pruned' needs 1 or more");
    spec = method_of(ROUTING_PRUNED, 8);
    spec.top_js = {1, 1, 1, 0, 1, 1};
    says(spec, "topJs: 'pruned'");
    spec = spec_of(0.1, 8);
    spec.lambdas = {0.1, 0.2};
    says(spec, "lambdas: expected one per MoE layer (6), found 2");
    spec.lambdas.assign(6, 1.5);
    says(spec, "lambdas: expected 0 to 1");
    spec = spec_of(0.1, 8);
    spec.top_js.assign(6, 5);
    says(spec, "topJs: expected 0 to 4");
    spec.top_js = {1};
    says(spec, "topJs: expected one per");
    spec = spec_of(0.1, 8);
    spec.first_biased_layer = 7;
    says(spec, "firstBiasedLayer: expected 0 to 6");
    spec = spec_of(0.1, 8);
    for (const double wrong : {-1.0, double(INFINITY), double(NAN)}) {
        spec.eviction_half_life = wrong;
        says(spec, "evictionHalfLife");
    }
}

static void batched_agrees_with_stepped(engine * e, const std::vector<int32_t> & tokens) {
    for (const double lambda : {0.0, 0.1, 0.3}) {
        for (const int capacity : {8, 16}) {
            const evaluate_result batched = evaluate(e, tokens, spec_of(lambda, capacity), false);
            const evaluate_result stepped = evaluate(e, tokens, spec_of(lambda, capacity), true);
            printf("lambda %.1f capacity %2d: batched %.5f nats %.4f missed, stepped %.5f nats %.4f missed\n", lambda, capacity,
                   batched.cross_entropy, batched.miss_rate, stepped.cross_entropy, stepped.miss_rate);
            CHECK_NEAR(batched.cross_entropy, stepped.cross_entropy, 0.002);
            CHECK_NEAR(batched.miss_rate, stepped.miss_rate, 0.005);
            CHECK_NEAR(batched.mean_lifetime_tokens, stepped.mean_lifetime_tokens, 0.05 * stepped.mean_lifetime_tokens);
        }
    }
    engine_memory memory;
    REQUIRE_OK(engine_get_memory(e, memory));
    CHECK_EQUAL(memory.resident_bytes, 0u);
}

static void a_pull_saves_misses(engine * e, const std::vector<int32_t> & tokens) {
    const evaluate_result own = evaluate(e, tokens, spec_of(0, 16), false);
    const evaluate_result pulled = evaluate(e, tokens, spec_of(0.3, 16), false);
    printf("capacity 16: %.4f missed at lambda 0, %.4f at 0.3; %+.2f%% perplexity\n", own.miss_rate, pulled.miss_rate,
           100 * (std::exp(pulled.cross_entropy - own.cross_entropy) - 1));
    CHECK(pulled.miss_rate <= own.miss_rate / 2);
    CHECK(pulled.swap_rate > 0 && pulled.mass_lost > 0);
    CHECK_NEAR(pulled.cross_entropy, own.cross_entropy, 0.05);
}

static void leaves_the_cache_of_generation_alone(engine * e, const std::vector<int32_t> & tokens) {
    generate_request request;
    request.request_id = "warm";
    request.prompt = first(tokens, 30);
    request.max_tokens = 20;
    generate_result warm;
    REQUIRE_OK(engine_generate(e, request, [](const engine_step &) {}, warm));
    engine_counters before, after;
    engine_memory held, still;
    REQUIRE_OK(engine_get_counters(e, before));
    REQUIRE_OK(engine_get_memory(e, held));
    evaluate(e, first(tokens, 512), spec_of(0.3, 6), false);
    REQUIRE_OK(engine_get_counters(e, after));
    REQUIRE_OK(engine_get_memory(e, still));
    CHECK(held.resident_bytes > 0);
    CHECK_EQUAL(held.resident_bytes, still.resident_bytes);
    CHECK_EQUAL(before.misses_total, after.misses_total);
    CHECK_EQUAL(before.layers[2].hits, after.layers[2].hits);
    CHECK_EQUAL(before.layers[2].resident, after.layers[2].resident);
}

static void can_be_cancelled(engine * e, const std::vector<int32_t> & tokens) {
    evaluate_request request;
    request.tokens = tokens;
    request.context = 256;
    request.spec = spec_of(0, 8);
    evaluate_result result;
    int calls = 0;
    const engine_status status = engine_evaluate(e, request, [&](int64_t done, int64_t total) {
        calls++;
        CHECK(done <= total);
        CHECK(engine_cancel(e, EVALUATE_REQUEST_ID));
        return true;
    }, result);
    CHECK_EQUAL(status.code, ENGINE_CANCELLED);
    CHECK_EQUAL(calls, 1);
    CHECK_EQUAL(engine_evaluate(e, request, [](int64_t, int64_t) { return false; }, result).code, ENGINE_CANCELLED);
    request.tokens.pop_back();
    CHECK_EQUAL(engine_evaluate(e, request, nullptr, result).code, ENGINE_BAD_ARGUMENT);
    request.tokens.clear();
    CHECK_EQUAL(engine_evaluate(e, request, nullptr, result).code, ENGINE_BAD_ARGUMENT);
}

static std::vector<int32_t> generated(engine * e, const std::vector<int32_t> & prompt) {
    generate_request request;
    request.request_id = "after";
    request.prompt = prompt;
    request.max_tokens = 24;
    std::vector<int32_t> tokens;
    generate_result result;
    REQUIRE_OK(engine_generate(e, request, [&](const engine_step & step) { tokens.push_back(step.token); }, result));
    return tokens;
}

// With fewer tokens at a time only the rounding of kernels differs; the context that generates is there again afterwards.
static void scoring_in_little_memory_says_the_same(engine * e, const std::vector<int32_t> & tokens) {
    const evaluate_result once = evaluate(e, first(tokens, 1024), spec_of(0.1, 8), false);
    const std::vector<int32_t> before = generated(e, first(tokens, 40));
    evaluate_request request;
    request.tokens = first(tokens, 1024);
    request.context = 256;
    request.spec = spec_of(0.1, 8);
    request.memory_bytes = 0;
    evaluate_result little;
    REQUIRE_OK(engine_evaluate(e, request, nullptr, little));
    CHECK(little.token_nll != once.token_nll);
    CHECK_NEAR(little.cross_entropy, once.cross_entropy, 1e-3);
    CHECK_NEAR(double(little.misses), double(once.misses), 0.02 * double(once.misses));
    CHECK(generated(e, first(tokens, 40)) == before);
}

static void experts_that_have_no_room_pass_through(const std::vector<int32_t> & tokens) {
    engine_open_options options = options_of(MODEL, spec_of(0, 8));
    engine * roomy = open_engine(options);
    options.prefill_bytes = 1;
    engine * tight = open_engine(options);
    for (const engine_spec & spec : {spec_of(0.1, 8), method_of(ROUTING_PRUNED, 8, 2)}) {
        CHECK(evaluate(roomy, first(tokens, 512), spec, false).token_nll == evaluate(tight, first(tokens, 512), spec, false).token_nll);
    }
    engine_free(roomy);
    engine_free(tight);
}

int main() {
    engine * e = open_engine(options_of(MODEL, spec_of(0, 8)));
    const std::vector<int32_t> text = text_tokens(e, "wikitext.txt", 60000);
    const std::vector<int32_t> tokens = first(text, 2048);
    capacity_does_not_change_the_model(e, tokens);
    the_mildest_setting_is_the_model_itself(e, tokens);
    batched_agrees_with_stepped(e, tokens);
    each_method_agrees_with_stepped(e, tokens);
    each_eviction_agrees_with_stepped(e, tokens);
    layers_can_differ(e, tokens);
    a_prompt_is_routed_by_the_model_and_not_scored(e, tokens);
    recorded_routes_replay_to_the_same_misses(e, tokens);
    a_better_rank_costs_more_to_replace(e, tokens);
    refuses_what_a_method_cannot_use(e);
    a_pull_saves_misses(e, first(text, 4096));
    leaves_the_cache_of_generation_alone(e, tokens);
    can_be_cancelled(e, tokens);
    scoring_in_little_memory_says_the_same(e, tokens);
    experts_that_have_no_room_pass_through(tokens);
    engine_free(e);

    engine_open_options keep = options_of(MODEL, spec_of(0, 8));
    keep.keep_all = true;
    engine * all = open_engine(keep);
    const evaluate_result once = evaluate(all, first(text, 1024), spec_of(0.1, 8), false);
    engine_counters first_time, second_time;
    REQUIRE_OK(engine_get_counters(all, first_time));
    const evaluate_result again = evaluate(all, first(text, 1024), spec_of(0.1, 8), false);
    REQUIRE_OK(engine_get_counters(all, second_time));
    CHECK(once.cross_entropy == again.cross_entropy && once.misses == again.misses);
    CHECK_EQUAL(first_time.flash_reads, second_time.flash_reads);
    // Misses are those of the evaluation's own cache, whatever is in memory by now.
    CHECK(evaluate_after_prompt(all, first(text, 1024), spec_of(0.1, 8), 128, false).prompt_misses > 0);
    engine_free(all);
    return checks_done();
}
