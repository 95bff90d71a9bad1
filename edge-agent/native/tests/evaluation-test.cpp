#include "engine-fixture.h"

static evaluate_result evaluate(engine * e, const std::vector<int32_t> & tokens, const engine_spec & spec, bool stepped) {
    evaluate_request request;
    request.tokens = tokens;
    request.context = 256;
    request.spec = spec;
    request.stepped = stepped;
    evaluate_result result;
    REQUIRE_OK(engine_evaluate(e, request, nullptr, result));
    CHECK_EQUAL(result.tokens, int64_t(tokens.size()) - 1);
    CHECK_EQUAL(result.hits + result.misses, result.tokens * 6 * 4);
    double sum = 0;
    for (const float nll : result.token_nll) sum += nll;
    CHECK_NEAR(sum / double(result.tokens), result.cross_entropy, 1e-6);
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

int main() {
    engine * e = open_engine(options_of(MODEL, spec_of(0, 8)));
    const std::vector<int32_t> text = text_tokens(e, "wikitext.txt", 60000);
    const std::vector<int32_t> tokens = first(text, 2048);
    capacity_does_not_change_the_model(e, tokens);
    batched_agrees_with_stepped(e, tokens);
    a_pull_saves_misses(e, first(text, 4096));
    leaves_the_cache_of_generation_alone(e, tokens);
    can_be_cancelled(e, tokens);
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
    engine_free(all);
    return checks_done();
}
