// Warming the cache from a list: what becomes a member and in which order, that requests come first, that a damaged list
// or a disk that fails does no harm, and that a replay of what was recorded misses what the engine missed.
#include "engine-fixture.h"

#include "engine-state.h"

#include <atomic>
#include <cstring>
#include <numeric>
#include <thread>

using ranked_lists = std::vector<std::vector<int32_t>>;

static const int LAYERS = 6, EXPERTS = 32, TOP_K = 4;

static generate_request request_of(const std::vector<int32_t> & prompt, int tokens) {
    generate_request r;
    r.request_id = "test";
    r.prompt = prompt;
    r.max_tokens = tokens;
    return r;
}

static std::vector<int32_t> generate(engine * e, const std::vector<int32_t> & prompt, int count, generate_result & result) {
    std::vector<int32_t> tokens;
    REQUIRE_OK(engine_generate(e, request_of(prompt, count), [&](const engine_step & s) { if (s.token >= 0) tokens.push_back(s.token); }, result));
    return tokens;
}

static ranked_lists downwards(int from, int count) {
    ranked_lists lists;
    lists.resize(LAYERS);
    for (auto & list : lists) {
        for (int i = 0; i < count; i++) list.push_back(from - i);
    }
    return lists;
}

static std::vector<int32_t> members(engine * e, int layer) {
    std::vector<int32_t> out(EXPERTS);
    out.resize(size_t(expert_cache_members(e->layers[layer].cache, out.data())));
    return out;
}

static void the_first_ranked_fill_the_room_and_no_more(engine * e) {
    REQUIRE_OK(engine_apply(e, spec_of(0, 8)));
    REQUIRE_OK(engine_drop_cache(e));
    engine_counters before, after;
    REQUIRE_OK(engine_get_counters(e, before));
    warm_result warmed;
    REQUIRE_OK(engine_warm(e, downwards(31, 12), warmed));
    REQUIRE_OK(engine_get_counters(e, after));
    CHECK_EQUAL(int(warmed.end), int(WARM_DONE));
    CHECK_EQUAL(warmed.experts, int64_t(LAYERS * 8));
    CHECK_EQUAL(warmed.failures, int64_t(0));
    int64_t bytes = 0;
    for (const uint64_t b : e->file.info.expert_bytes) bytes += 8 * int64_t(b);
    CHECK_EQUAL(warmed.bytes, bytes);
    CHECK_EQUAL(after.warm_bytes - before.warm_bytes, bytes);
    CHECK_EQUAL(after.flash_bytes, before.flash_bytes);
    CHECK_EQUAL(after.misses_total, before.misses_total);
    for (int l = 0; l < LAYERS; l++) {
        CHECK_EQUAL(after.layers[size_t(l)].resident, 8);
        CHECK_EQUAL(after.layers[size_t(l)].warm_fills - before.layers[size_t(l)].warm_fills, int64_t(8));
        CHECK_EQUAL(after.layers[size_t(l)].hits + after.layers[size_t(l)].misses, before.layers[size_t(l)].hits + before.layers[size_t(l)].misses);
        // From least to most recent: the lowest rank is the first to go.
        CHECK((members(e, l) == std::vector<int32_t>{24, 25, 26, 27, 28, 29, 30, 31}));
    }
    engine_memory memory;
    REQUIRE_OK(engine_get_memory(e, memory));
    CHECK_EQUAL(memory.resident_bytes, memory.cache_bytes);

    // A larger cache goes on with the same list; members are passed over.
    REQUIRE_OK(engine_apply(e, spec_of(0, 11)));
    REQUIRE_OK(engine_warm(e, downwards(31, 12), warmed));
    CHECK_EQUAL(warmed.experts, int64_t(LAYERS * 3));
    CHECK_EQUAL(members(e, 2)[0], 21);
    // A short list leaves room.
    REQUIRE_OK(engine_drop_cache(e));
    REQUIRE_OK(engine_warm(e, downwards(5, 2), warmed));
    CHECK_EQUAL(warmed.experts, int64_t(LAYERS * 2));
}

static void refuses_a_list_that_makes_no_sense(engine * e) {
    REQUIRE_OK(engine_drop_cache(e));
    const auto refused = [&](const ranked_lists & lists, const char * why) {
        warm_result warmed;
        const engine_status status = engine_warm(e, lists, warmed);
        CHECK_EQUAL(int(status.code), int(ENGINE_BAD_ARGUMENT));
        if (!strstr(status.message, why)) fprintf(stderr, "found: %s\n", status.message);
        CHECK(strstr(status.message, why) != nullptr);
        CHECK_EQUAL(e->layers[0].cache.size, 0);
    };
    refused(ranked_lists(5), "expected one list per MoE layer (6), found 5");
    ranked_lists lists = downwards(31, 4);
    lists[3][2] = 32;
    refused(lists, "entry 2 of blk.3: expected an expert from 0 to 31, found 32");
    lists[3][2] = -1;
    refused(lists, "found -1");
    lists[3][2] = 31;
    refused(lists, "entry 2 of blk.3: expert 31 is there twice");
    lists = downwards(31, 32);
    lists[1].push_back(0);
    refused(lists, "entry 32 of blk.1: expert 0 is there twice");
}

static void output_is_that_of_a_cold_cache_and_hits_are_more(engine * e, const std::vector<int32_t> & prompt) {
    REQUIRE_OK(engine_apply(e, spec_of(0, 12)));
    REQUIRE_OK(engine_drop_cache(e));
    generate_result cold, warm;
    const std::vector<int32_t> text = generate(e, prompt, 32, cold);
    ranked_lists lists;
    for (int l = 0; l < LAYERS; l++) {
        std::vector<int32_t> best = members(e, l);
        std::reverse(best.begin(), best.end());
        lists.push_back(best);
    }
    REQUIRE_OK(engine_drop_cache(e));
    warm_result warmed;
    REQUIRE_OK(engine_warm(e, lists, warmed));
    CHECK(generate(e, prompt, 32, warm) == text);
    CHECK(warm.prefill_misses < cold.prefill_misses);
    CHECK_EQUAL(warm.decode_hits + warm.decode_misses, cold.decode_hits + cold.decode_misses);
}

// A slow disk, and requests that come while it fills: each takes over at once, and the fill goes on when it is done.
static void requests_come_first(const std::vector<int32_t> & prompt) {
    engine_open_options options = options_of(MODEL, spec_of(0, 24));
    options.read_bytes_per_second = 20 << 20;
    engine * e = open_engine(options);
    std::atomic<bool> ended{false};
    warm_result warmed;
    std::thread filling([&] {
        REQUIRE_OK(engine_warm(e, downwards(31, 24), warmed));
        ended.store(true);
    });
    const auto fills = [&] {
        engine_counters c;
        REQUIRE_OK(engine_get_counters(e, c));
        int64_t n = 0;
        for (const auto & layer : c.layers) n += layer.warm_fills;
        return n;
    };
    while (fills() < 3) std::this_thread::yield();
    generate_result result;
    REQUIRE_OK(engine_begin(e, "test"));
    const int64_t at_begin = fills();
    generate_request request = request_of(prompt, 8);
    request.begun = true;
    int64_t at_first_token = -1;
    REQUIRE_OK(engine_generate(e, request, [&](const engine_step & s) { if (s.step == 0) at_first_token = fills(); }, result));
    CHECK(!ended.load());
    CHECK_EQUAL(at_first_token, at_begin);
    // Asked for something else meanwhile, or shrunk, it stays within bounds.
    REQUIRE_OK(engine_shrink(e, std::vector<int32_t>(size_t(LAYERS), 6)));
    engine_memory memory;
    REQUIRE_OK(engine_get_memory(e, memory));
    CHECK(memory.resident_bytes <= memory.cache_bytes);
    REQUIRE_OK(engine_apply(e, spec_of(0, 16)));
    filling.join();
    CHECK(warmed.end == WARM_DONE);
    REQUIRE_OK(engine_get_memory(e, memory));
    CHECK(memory.resident_bytes <= memory.cache_bytes);

    // A newer list overtakes the one that is being read; closing ends it.
    REQUIRE_OK(engine_drop_cache(e));
    warm_result first, second;
    std::thread overtaken([&] { REQUIRE_OK(engine_warm(e, downwards(31, 16), first)); });
    while (e->layers[0].cache.size == 0) std::this_thread::yield();
    REQUIRE_OK(engine_warm(e, downwards(15, 16), second));
    overtaken.join();
    CHECK_EQUAL(int(first.end), int(WARM_OVERTAKEN));
    CHECK_EQUAL(int(second.end), int(WARM_DONE));
    REQUIRE_OK(engine_drop_cache(e));
    const int64_t before = fills();
    std::thread closed([&] {
        warm_result none;
        CHECK_EQUAL(int(engine_warm(e, downwards(31, 16), none).code), int(ENGINE_CLOSED));
    });
    while (fills() == before) std::this_thread::yield();
    engine_close(e);
    closed.join();
    engine_free(e);
}

// Many short requests against a fill on a slow disk: nothing is lost, nothing is read into a place in use.
static void survives_requests_at_any_moment(const std::vector<int32_t> & prompt) {
    engine_open_options options = options_of(MODEL, spec_of(0.2, 12));
    options.read_bytes_per_second = 60 << 20;
    engine * e = open_engine(options);
    const std::vector<int32_t> head(prompt.begin(), prompt.begin() + 6);
    generate_result result;
    REQUIRE_OK(engine_apply(e, spec_of(0, 12)));
    const std::vector<int32_t> alone = generate(e, head, 4, result);
    std::atomic<bool> done{false};
    std::thread filling([&] {
        for (int i = 0; !done.load(); i++) {
            warm_result warmed;
            if (failed(engine_warm(e, downwards(31 - i % 8, 24), warmed))) return;
            engine_drop_cache(e);  // refused while a request runs
        }
    });
    for (int i = 0; i < 60; i++) {
        CHECK(generate(e, head, 4, result) == alone);
        engine_memory memory;
        REQUIRE_OK(engine_get_memory(e, memory));
        CHECK(memory.resident_bytes <= memory.cache_bytes);
    }
    done.store(true);
    engine_close(e);
    filling.join();
    engine_free(e);
}

static void uses_are_the_models_own_choice(engine * e, const std::vector<int32_t> & prompt) {
    REQUIRE_OK(engine_apply(e, spec_of(0, 8)));
    expert_use_counts before, after;
    generate_result result;
    REQUIRE_OK(engine_get_expert_use(e, before));
    const size_t tokens = generate(e, prompt, 24, result).size() - 1;
    REQUIRE_OK(engine_get_expert_use(e, after));
    for (int l = 0; l < LAYERS; l++) {
        double wanted = 0;
        for (int x = 0; x < EXPERTS; x++) {
            const size_t at = size_t(l * EXPERTS + x);
            wanted += after.wanted[at] - before.wanted[at];
            CHECK_EQUAL(after.wanted[at] - before.wanted[at], after.chosen[at] - before.chosen[at]);
        }
        CHECK_EQUAL(wanted, double(tokens * TOP_K));
    }
    REQUIRE_OK(engine_apply(e, spec_of(0.5, 8, 0)));
    generate(e, prompt, 24, result);
    expert_use_counts bent;
    REQUIRE_OK(engine_get_expert_use(e, bent));
    double swapped = 0;
    for (size_t i = 0; i < bent.wanted.size(); i++) swapped += std::fabs((bent.wanted[i] - after.wanted[i]) - (bent.chosen[i] - after.chosen[i]));
    CHECK(result.decode_swaps > 0);
    CHECK(swapped > 0);
    CHECK(swapped <= double(2 * result.decode_swaps));
}

// Tokens one by one through the real cache, with fills and resizes between them; replayed, they miss the same.
static void a_replay_consumes_the_fills(engine * e) {
    const std::vector<int32_t> tokens = text_tokens(e, "wikitext.txt", 2000);
    const int count = 90;
    for (const engine_eviction eviction : {EVICT_LRU, EVICT_LFU, EVICT_LFRU}) {
        replay_request request;
        request.trace.experts = EXPERTS;
        request.trace.top_k = TOP_K;
        request.what_ifs.resize(1);
        request.what_ifs[0].capacities.assign(size_t(LAYERS), 12);
        request.what_ifs[0].eviction = eviction;
        engine_spec spec = spec_of(0.2, 12);
        spec.eviction = eviction;
        REQUIRE_OK(engine_apply(e, spec));
        REQUIRE_OK(engine_drop_cache(e));
        llama_memory_clear(llama_get_memory(e->context), false);
        cache_change_log log;
        cache_change_log_init(log, 4096);
        e->hook.changes = &log;
        std::vector<int32_t> routes(size_t(count * LAYERS * TOP_K));
        std::vector<int64_t> misses;
        for (int l = 0; l < LAYERS; l++) misses.push_back(-e->layers[l].tally.misses.get());
        pass_batch batch;
        pass_batch_init(batch, 1);
        for (int t = 0; t < count; t++) {
            if (t == 0 || t == 30 || t == 60) {
                warm_result warmed;
                if (t == 60) spec.capacities.assign(size_t(LAYERS), 18);
                REQUIRE_OK(engine_apply(e, spec));
                REQUIRE_OK(engine_warm(e, downwards(31 - t / 10, 20), warmed));
            }
            REQUIRE_OK(engine_begin(e, "test"));
            layer_hook_follow(e->hook, e->spec);
            e->hook.ring = nullptr;
            e->hook.routes = routes.data() + size_t(t * LAYERS * TOP_K);
            e->hook.route_tokens = 1;
            REQUIRE_OK(engine_run_pass(*e, e->context, batch, &tokens[size_t(t)], 1, t, OUTPUTS_LAST, PASS_ROUTED));
            engine_end_request(*e);
        }
        pass_batch_free(batch);
        e->hook.routes = nullptr;
        e->hook.changes = nullptr;
        llama_memory_clear(llama_get_memory(e->context), false);
        CHECK_EQUAL(log.lost, 0);
        request.trace.changes.assign(log.of.get(), log.of.get() + log.count);
        request.trace.layer_events.assign(size_t(LAYERS), count);
        for (int l = 0; l < LAYERS; l++) {
            for (int t = 0; t < count; t++) {
                const int32_t * event = &routes[size_t((t * LAYERS + l) * TOP_K)];
                request.trace.routes.insert(request.trace.routes.end(), event, event + TOP_K);
            }
        }
        replay_result replayed, unaware;
        REQUIRE_OK(engine_replay(request, {}, replayed));
        std::vector<cache_change> resizes;
        for (const auto & change : request.trace.changes) if (change.warmed < 0) resizes.push_back(change);
        CHECK(resizes.size() < request.trace.changes.size());
        request.trace.changes = resizes;
        REQUIRE_OK(engine_replay(request, {}, unaware));
        bool differs = false;
        for (int l = 0; l < LAYERS; l++) {
            misses[size_t(l)] += e->layers[l].tally.misses.get();
            CHECK_EQUAL(replayed.what_ifs[0][size_t(l)].misses, misses[size_t(l)]);
            differs |= unaware.what_ifs[0][size_t(l)].misses != misses[size_t(l)];
        }
        CHECK(differs);
        request.trace.changes = {{0, 0, 12, 32}};
        CHECK_EQUAL(int(engine_replay(request, {}, unaware).code), int(ENGINE_BAD_ARGUMENT));
    }
}

// What the file no longer holds is passed over; demands of it fail by name, as ever.
static void a_disk_that_fails_costs_the_fill_alone() {
    temporary_folder folder;
    const std::string path = folder.file("model.gguf");
    copy_file(MODEL, path);
    engine * e = open_engine(options_of(path, spec_of(0, 16)));
    if (truncate(path.c_str(), off_t(e->file.info.file_bytes / 2)) != 0) exit(1);
    warm_result warmed;
    REQUIRE_OK(engine_warm(e, downwards(31, 16), warmed));
    CHECK(warmed.failures > 0);
    CHECK(warmed.experts > 0);
    CHECK(warmed.last_failure.find("the file ended early") != std::string::npos);
    engine_memory memory;
    REQUIRE_OK(engine_get_memory(e, memory));
    int64_t held = 0;
    for (int l = 0; l < LAYERS; l++) held += e->layers[l].cache.size * int64_t(e->file.info.expert_bytes[size_t(l)]);
    CHECK_EQUAL(int64_t(memory.resident_bytes), held);
    engine_free(e);
}

int main() {
    engine * e = open_engine(options_of(MODEL, spec_of(0, 16)));
    const std::vector<int32_t> prompt = text_tokens(e, "wikitext.txt", 200);
    the_first_ranked_fill_the_room_and_no_more(e);
    refuses_a_list_that_makes_no_sense(e);
    output_is_that_of_a_cold_cache_and_hits_are_more(e, prompt);
    uses_are_the_models_own_choice(e, prompt);
    a_replay_consumes_the_fills(e);
    engine_free(e);
    requests_come_first(prompt);
    survives_requests_at_any_moment(prompt);
    a_disk_that_fails_costs_the_fill_alone();
    return checks_done();
}
