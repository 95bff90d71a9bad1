// Giving memory back: at the next layer, never below one token, and without a change to the output at lambda 0.
#include "engine-fixture.h"

#include "engine-state.h"

#include <atomic>
#include <cstring>
#include <thread>

static generate_request request_of(const std::vector<int32_t> & prompt, int tokens) {
    generate_request r;
    r.request_id = "test";
    r.prompt = prompt;
    r.max_tokens = tokens;
    r.cold_cache = true;
    return r;
}

static std::vector<int32_t> generate(engine * e, const generate_request & request, const step_callback & on_step = nullptr) {
    std::vector<int32_t> tokens;
    generate_result result;
    REQUIRE_OK(engine_generate(e, request, [&](const engine_step & s) {
        if (s.token >= 0) tokens.push_back(s.token);
        if (on_step) on_step(s);
    }, result));
    return tokens;
}

static std::vector<int32_t> all(int capacity) { return std::vector<int32_t>(6, capacity); }

static void gives_memory_back_at_once_when_idle(engine * e, const std::vector<int32_t> & prompt) {
    REQUIRE_OK(engine_apply(e, spec_of(0, 24)));
    generate(e, request_of(prompt, 32));
    engine_counters before, after;
    REQUIRE_OK(engine_get_counters(e, before));
    std::vector<int32_t> held = all(8);
    held[3] = 24;  // no lower than what is in force
    REQUIRE_OK(engine_shrink(e, held));
    engine_memory memory;
    REQUIRE_OK(engine_get_memory(e, memory));
    CHECK(memory.resident_bytes <= memory.cache_bytes);
    engine_spec spec;
    REQUIRE_OK(engine_get_spec(e, spec));
    CHECK(spec.capacities == held);
    REQUIRE_OK(engine_get_counters(e, after));
    CHECK_EQUAL(after.shrinks, before.shrinks + 1);
    CHECK_EQUAL(after.resizes, before.resizes);
    for (size_t l = 0; l < after.layers.size(); l++) {
        CHECK_EQUAL(after.layers[l].pressure_evictions - before.layers[l].pressure_evictions,
                    int64_t(before.layers[l].resident - after.layers[l].resident));
        CHECK_EQUAL(after.layers[l].capacity, held[l]);
    }
    CHECK(after.layers[0].pressure_evictions > before.layers[0].pressure_evictions);
    CHECK_EQUAL(after.layers[3].pressure_evictions, before.layers[3].pressure_evictions);

    // More is for a spec to grant, and what a spec takes is counted as its own.
    REQUIRE_OK(engine_shrink(e, all(24)));
    REQUIRE_OK(engine_get_spec(e, spec));
    CHECK(spec.capacities == held);
    REQUIRE_OK(engine_apply(e, spec_of(0, 24)));
    REQUIRE_OK(engine_get_spec(e, spec));
    CHECK(spec.capacities == all(24));
    REQUIRE_OK(engine_apply(e, spec_of(0, 4)));
    engine_counters last;
    REQUIRE_OK(engine_get_counters(e, last));
    CHECK_EQUAL(last.resizes, after.resizes + 2);
    CHECK(last.layers[3].resize_evictions > after.layers[3].resize_evictions);
    CHECK_EQUAL(last.layers[3].pressure_evictions, after.layers[3].pressure_evictions);
}

static void refuses_what_one_token_needs(engine * e) {
    engine_status status = engine_shrink(e, all(3));
    CHECK_EQUAL(int(status.code), int(ENGINE_CAPACITY));
    CHECK(strstr(status.message, "capacity 3 of blk.0 is below the 4 experts one token needs: 4 x"));
    status = engine_shrink(e, std::vector<int32_t>(5, 8));
    CHECK_EQUAL(int(status.code), int(ENGINE_BAD_ARGUMENT));
    status = engine_shrink(e, all(33));
    CHECK_EQUAL(int(status.code), int(ENGINE_BAD_ARGUMENT));
}

// A request that would go on for long is caught in the middle, at a layer: had the shrink waited for a token boundary,
// the pass under way would have ended first.
static void is_in_force_at_the_next_layer(engine * e) {
    REQUIRE_OK(engine_apply(e, spec_of(0, 16)));
    engine_empty_cache(*e);
    llama_memory_clear(llama_get_memory(e->context), false);
    layer_hook & hook = e->hook;
    const std::vector<int32_t> tokens = text_tokens(e, "wikitext.txt", 2000);
    // Fill, then ask from the thread that owns the slot, as if another had, and run one more pass.
    REQUIRE_OK(engine_begin(e, "test"));
    layer_hook_follow(hook, e->spec);
    hook.ring = nullptr;
    pass_batch batch;
    pass_batch_init(batch, 64);
    REQUIRE_OK(engine_run_pass(*e, e->context, batch, tokens.data(), 64, 0, OUTPUTS_LAST, PASS_ROUTED));
    CHECK_EQUAL(e->layers[4].cache.size, 16);
    cache_shrink_ask(e->shrink, all(5));
    CHECK(cache_shrink_waits(e->shrink));
    CHECK_EQUAL(e->layers[0].cache.size, 16);
    REQUIRE_OK(engine_run_pass(*e, e->context, batch, tokens.data() + 64, 1, 64, OUTPUTS_LAST, PASS_ROUTED));
    CHECK(!cache_shrink_waits(e->shrink));
    CHECK_EQUAL(e->layers[5].cache.capacity, 5);
    for (int l = 0; l < 5; l++) {  // the last layer sees no more rows than there are outputs
        CHECK_EQUAL(e->layers[l].cache.size, 5);
        CHECK(e->layers[l].tally.pressure_evictions.get() >= 11);
    }
    pass_batch_free(batch);
    llama_memory_clear(llama_get_memory(e->context), false);
    engine_abandon(e);
}

static void keeps_output_and_bound_under_load(engine * e, const std::vector<int32_t> & prompt) {
    REQUIRE_OK(engine_apply(e, spec_of(0, 32)));
    const std::vector<int32_t> alone = generate(e, request_of(prompt, 96));
    model_info info;
    REQUIRE_OK(engine_get_info(e, info));
    std::atomic<bool> done{false};
    int shrinks = 0;
    std::thread pressure([&] {
        for (int i = 0; !done.load(); i++) {
            const int small = 4 + i % 7;
            REQUIRE_OK(engine_shrink(e, all(small)));
            // Decode holds nothing beyond the cache, once prefill is over.
            engine_memory memory;
            REQUIRE_OK(engine_get_memory(e, memory));
            CHECK(memory.resident_bytes <= memory.cache_bytes + memory.prefill_bytes);
            shrinks++;
            REQUIRE_OK(engine_apply(e, spec_of(0, 12 + i % 20)));
        }
    });
    for (int round = 0; round < 3; round++) CHECK(generate(e, request_of(prompt, 96)) == alone);
    done.store(true);
    pressure.join();
    CHECK(shrinks > 20);
}

// Tokens of the text, one by one through the real cache, as decode does; what they used, layer by layer, and what changed
// meanwhile. Returns the misses of each layer.
static std::vector<int64_t> record_under_load(engine * e, const std::vector<int32_t> & tokens, engine_eviction eviction, route_trace & out) {
    const int layers = 6, top_k = 4, count = 240;
    cache_change_log log;
    cache_change_log_init(log, 1 << 16);
    std::vector<int32_t> routes(size_t(count * layers * top_k));
    REQUIRE_OK(engine_begin(e, "test"));
    engine_empty_cache(*e);
    llama_memory_clear(llama_get_memory(e->context), false);
    e->hook.changes = &log;
    std::vector<int64_t> misses;
    for (int l = 0; l < layers; l++) misses.push_back(-e->layers[l].tally.misses.get());
    std::atomic<bool> done{false};
    std::thread pressure([&] {
        for (int i = 0; !done.load(); i++) {
            std::vector<int32_t> held = all(4 + i % 9);
            held[size_t(i % 6)] = 20;
            if (failed(engine_shrink(e, held)) || done.load()) return;
            engine_spec spec = spec_of(0.2, 10 + i % 12);
            spec.eviction = eviction;
            if (failed(engine_apply(e, spec))) return;
        }
    });
    pass_batch batch;
    pass_batch_init(batch, 1);
    for (int t = 0; t < count; t++) {
        engine_apply_pending(*e);
        layer_hook_follow(e->hook, e->spec);
        e->hook.ring = nullptr;
        e->hook.routes = routes.data() + size_t(t * layers * top_k);
        e->hook.route_tokens = 1;
        REQUIRE_OK(engine_run_pass(*e, e->context, batch, &tokens[size_t(t)], 1, t % 100, OUTPUTS_LAST, PASS_ROUTED));
        if (t % 100 == 99) llama_memory_clear(llama_get_memory(e->context), false);
    }
    for (int l = 0; l < layers; l++) misses[size_t(l)] += e->layers[l].tally.misses.get();
    e->hook.routes = nullptr;
    e->hook.changes = nullptr;
    done.store(true);
    engine_end_request(*e);
    pressure.join();
    pass_batch_free(batch);
    llama_memory_clear(llama_get_memory(e->context), false);
    CHECK_EQUAL(log.lost, 0);
    CHECK(log.count > 100);
    out.changes.assign(log.of.get(), log.of.get() + log.count);
    out.layer_events.assign(size_t(layers), count);
    for (int l = 0; l < layers; l++) {
        for (int t = 0; t < count; t++) out.routes.insert(out.routes.end(), &routes[size_t((t * layers + l) * top_k)], &routes[size_t((t * layers + l) * top_k)] + top_k);
    }
    return misses;
}

static void replays_to_the_same_misses_through_resizes(engine * e) {
    const std::vector<int32_t> tokens = text_tokens(e, "wikitext.txt", 2000);
    for (const engine_eviction eviction : {EVICT_LRU, EVICT_LFU, EVICT_LFRU}) {
        engine_spec spec = spec_of(0.2, 12);
        spec.eviction = eviction;
        REQUIRE_OK(engine_apply(e, spec));
        replay_request request;
        request.trace.experts = 32;
        request.trace.top_k = 4;
        const std::vector<int64_t> misses = record_under_load(e, tokens, eviction, request.trace);
        spec.routing = ROUTING_ORIGINAL;  // the record holds what was chosen, bent already
        request.what_ifs = {spec};
        replay_result replayed, unaware;
        REQUIRE_OK(engine_replay(request, {}, replayed));
        request.trace.changes.clear();
        REQUIRE_OK(engine_replay(request, {}, unaware));
        bool differs = false;
        for (size_t l = 0; l < misses.size(); l++) {
            CHECK_EQUAL(replayed.what_ifs[0][l].misses, misses[l]);
            differs |= unaware.what_ifs[0][l].misses != misses[l];
        }
        CHECK(differs);
    }
}

// A spec that was asked for before the shrink, and comes into force after it, must not grow the cache again.
static void overtakes_a_spec_that_waits(engine * e) {
    REQUIRE_OK(engine_apply(e, spec_of(0, 8)));
    {
        std::lock_guard<std::mutex> lock(e->mutex);
        e->running = true;  // as if a request ran that has not reached its boundary
    }
    std::thread spec([&] { REQUIRE_OK(engine_apply(e, spec_of(0, 30))); });
    while (!e->spec_pending.load()) std::this_thread::yield();
    std::thread shrink([&] { REQUIRE_OK(engine_shrink(e, all(5))); });
    while (!cache_shrink_waits(e->shrink)) std::this_thread::yield();
    engine_end_request(*e);
    spec.join();
    shrink.join();
    engine_spec now;
    REQUIRE_OK(engine_get_spec(e, now));
    CHECK(now.capacities == all(5));
}

static void waits_for_a_stepped_evaluation(engine * e) {
    REQUIRE_OK(engine_apply(e, spec_of(0, 16)));
    evaluate_request r;
    r.tokens = text_tokens(e, "wikitext.txt", 1200);
    r.tokens.resize(129);
    r.context = 64;
    r.spec = spec_of(0, 16);
    r.stepped = true;
    evaluate_result alone, under;
    REQUIRE_OK(engine_evaluate(e, r, nullptr, alone));
    std::thread shrink;
    REQUIRE_OK(engine_evaluate(e, r, [&](int64_t done, int64_t) {
        if (done == 64) shrink = std::thread([&] { REQUIRE_OK(engine_shrink(e, all(5))); });
        return true;
    }, under));
    shrink.join();
    CHECK_EQUAL(under.misses, alone.misses);
    engine_spec now;
    REQUIRE_OK(engine_get_spec(e, now));
    CHECK(now.capacities == all(5));
}

int main() {
    engine * e = open_engine(options_of(MODEL, spec_of(0, 16)));
    const std::vector<int32_t> prompt = text_tokens(e, "wikitext.txt", 200);
    gives_memory_back_at_once_when_idle(e, prompt);
    refuses_what_one_token_needs(e);
    is_in_force_at_the_next_layer(e);
    keeps_output_and_bound_under_load(e, prompt);
    replays_to_the_same_misses_through_resizes(e);
    overtakes_a_spec_that_waits(e);
    waits_for_a_stepped_evaluation(e);
    engine_close(e);
    const engine_status closed = engine_shrink(e, all(8));
    CHECK_EQUAL(int(closed.code), int(ENGINE_CLOSED));
    engine_free(e);
    return checks_done();
}
