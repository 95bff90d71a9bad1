#include "prefetch.h"

#include "engine-fixture.h"
#include "miss-fetch.h"

#include <cstring>

static evaluate_result stepped(engine * e, const std::vector<int32_t> & tokens, engine_spec spec, engine_prefetch prefetch) {
    evaluate_request request;
    request.tokens.assign(tokens.begin(), tokens.begin() + 97);
    request.context = 48;
    request.spec = spec;
    request.spec.prefetch = prefetch;
    request.stepped = true;
    request.record_routes = true;
    evaluate_result result;
    REQUIRE_OK(engine_evaluate(e, request, nullptr, result));
    return result;
}

struct guess_totals { int64_t guesses = 0, right = 0, guessable = 0, read_ahead = 0, misses = 0; };

static guess_totals totals_of(engine * e) {
    engine_counters counters;
    REQUIRE_OK(engine_get_counters(e, counters));
    guess_totals t;
    for (const auto & l : counters.layers) {
        t.guesses += l.guesses;
        t.right += l.guesses_right;
        t.guessable += l.guessable;
        t.read_ahead += l.prefetch_ready + l.prefetch_late;
    }
    return t;
}

// What is read ahead decides when bytes arrive, never what is computed.
static void changes_no_bit_of_the_output(engine * e, const std::vector<int32_t> & tokens) {
    for (const int capacity : {4, 6, 13, 24, 32}) {
        for (const double lambda : {0.0, 0.3}) {
            const engine_spec spec = spec_of(lambda, capacity, 1);
            const evaluate_result off = stepped(e, tokens, spec, PREFETCH_OFF);
            for (const engine_prefetch prefetch : {PREFETCH_ON, PREFETCH_AUTO}) {
                const evaluate_result ahead = stepped(e, tokens, spec, prefetch);
                CHECK(ahead.token_nll == off.token_nll);
                CHECK(ahead.routes == off.routes);
                CHECK_EQUAL(ahead.misses, off.misses);
            }
        }
    }
}

static void counts_its_guesses(engine * e, const std::vector<int32_t> & tokens) {
    const guess_totals before = totals_of(e);
    const evaluate_result result = stepped(e, tokens, spec_of(0, 13), PREFETCH_ON);
    const guess_totals after = totals_of(e);
    int64_t guessable = 0;
    for (size_t l = 1; l < result.per_layer.size(); l++) guessable += result.per_layer[l].misses;
    CHECK_EQUAL(after.guessable - before.guessable, guessable);
    const int64_t right = after.right - before.right, guesses = after.guesses - before.guesses;
    CHECK(right > guessable / 2);
    CHECK(right < guessable);
    CHECK(guesses <= 96 * 5 * 6);
    CHECK(guesses > right);
    engine_spec off = spec_of(0, 13);
    off.prefetch = PREFETCH_OFF;
    const guess_totals still = totals_of(e);
    stepped(e, tokens, off, PREFETCH_OFF);
    CHECK_EQUAL(totals_of(e).guesses, still.guesses);
}

static void says_what_staging_takes(engine * e) {
    engine_spec spec = spec_of(0, 13);
    spec.prefetch = PREFETCH_AUTO;
    engine_memory memory;
    REQUIRE_OK(engine_apply(e, spec));
    REQUIRE_OK(engine_get_memory(e, memory));
    CHECK_EQUAL(memory.staging_bytes, 2u * 78336u);
    spec.prefetch = PREFETCH_OFF;
    REQUIRE_OK(engine_apply(e, spec));
    REQUIRE_OK(engine_get_memory(e, memory));
    CHECK_EQUAL(memory.staging_bytes, 0u);
    REQUIRE_OK(engine_apply(e, spec_of(0, 13)));
}

// A fitted map finds more than the bare routers do, in text it was not fitted on; and an engine takes it.
static void a_fitted_map_foretells_better() {
    temporary_folder folder;
    const std::string path = folder.file("model.gguf");
    copy_file(MODEL, path);
    engine_open_options options = options_of(path, spec_of(0, 13));
    options.keep_all = true;
    engine * e = open_engine(options);
    fit_request request;
    request.tokens = text_tokens(e, "wikitext.txt", 60000);
    request.context = 128;
    request.tokens.resize(128 * 100 + 1);
    request.held_out_windows = 10;
    request.capacity = 13;
    fit_result result;
    REQUIRE_OK(engine_fit_prefetch(e, request, nullptr, result));
    CHECK_EQUAL(result.layers.size(), 5u);
    CHECK(result.path == path + ".prefetch");
    int64_t before = 0, after = 0;
    for (const auto & l : result.layers) {
        printf("layer %d: top-K shared %.3f, fitted %.3f; of %lld absent %lld found, fitted %lld\n", l.layer, l.shared_before, l.shared_after,
               (long long) l.absent, (long long) l.found_before, (long long) l.found_after);
        before += l.found_before;
        after += l.found_after;
        CHECK(l.found_after <= l.absent);
    }
    CHECK(after > before);
    request.held_out_windows = 100;
    CHECK_EQUAL(engine_fit_prefetch(e, request, nullptr, result).code, ENGINE_BAD_ARGUMENT);
    const std::vector<int32_t> tokens = text_tokens(e, "wikitext.txt", 2000);
    engine_free(e);

    engine_counters counters;
    engine * fitted = open_engine(options_of(path, spec_of(0, 13)));
    REQUIRE_OK(engine_get_counters(fitted, counters));
    CHECK(counters.prefetch_fitted);
    const evaluate_result off = stepped(fitted, tokens, spec_of(0, 13), PREFETCH_OFF);
    CHECK(stepped(fitted, tokens, spec_of(0, 13), PREFETCH_ON).token_nll == off.token_nll);
    const guess_totals with_map = totals_of(fitted);
    engine_free(fitted);
    // A map that is damaged is passed over.
    if (truncate((path + ".prefetch").c_str(), 5000) != 0) exit(1);
    engine * bare = open_engine(options_of(path, spec_of(0, 13)));
    REQUIRE_OK(engine_get_counters(bare, counters));
    CHECK(!counters.prefetch_fitted);
    CHECK(stepped(bare, tokens, spec_of(0, 13), PREFETCH_ON).token_nll == off.token_nll);
    CHECK(with_map.right > totals_of(bare).right);
    engine_free(bare);
}

// Cancelled, resized and closed with reads under way: lanes must not write into memory that has gone. For the sanitizer.
static void survives_being_stopped_anywhere() {
    for (int round = 0; round < 6; round++) {
        engine_spec spec = spec_of(0, 8);
        spec.prefetch = PREFETCH_ON;
        engine * e = open_engine(options_of(MODEL, spec));
        generate_request request;
        request.request_id = "r";
        request.prompt = {1, 5, 9};
        request.max_tokens = 200;
        generate_result result;
        int steps = 0;
        REQUIRE_OK(engine_generate(e, request, [&](const engine_step &) {
            if (++steps == 10 + round) engine_cancel(e, "r");
        }, result));
        spec.capacities.assign(6, 4 + round % 2);
        if (round % 3 == 0) spec.prefetch = PREFETCH_OFF;
        REQUIRE_OK(engine_apply(e, spec));
        if (round % 2 == 0) REQUIRE_OK(engine_drop_cache(e));
        engine_memory memory;
        REQUIRE_OK(engine_get_memory(e, memory));
        CHECK(memory.resident_bytes <= memory.cache_bytes + memory.staging_bytes);
        engine_free(e);
    }
}

// The parts of an engine that a guess passes through, over a file that ends within expert 6 of a layer.
struct truncated_model {
    temporary_folder folder;
    model_file file;
    expert_memory memory;
    ggml_context * context = nullptr;
    ggml_backend_buffer_t buffer = nullptr;
    flash_reader reader;
    engine_totals totals;
    layer_states layers;
    layer_hook hook;
    std::vector<float> weights;
    int layer = 0;

    truncated_model() {
        const std::string path = folder.file("model.gguf");
        copy_file(MODEL, path);
        std::string version;
        REQUIRE_OK(engine_version(version));
        REQUIRE_OK(model_file_read(path, file));
        expert_memory_init(memory, file);
        context = ggml_init(ggml_init_params{ggml_tensor_overhead() * 64, nullptr, true});
        for (const auto & t : file.header.tensors) {
            int32_t block;
            std::string kind;
            if (expert_tensor_name(t.name, block, kind)) ggml_set_name(ggml_new_tensor(context, ggml_type(t.type), t.dims, t.ne), t.name.c_str());
        }
        buffer = ggml_backend_alloc_ctx_tensors_from_buft(context, &memory.type);
        REQUIRE_OK(expert_memory_check(memory));
        uint64_t last = 0, cut = 0;
        for (int l = 0; l < int(memory.layers.size()); l++) {
            for (int p = 0; p < memory.layers[size_t(l)].n_places; p++) {
                const expert_place & place = memory.layers[size_t(l)].places[p];
                if (place.file_offset <= last) continue;
                last = place.file_offset;
                cut = last + 6 * place.bytes + 100;
                layer = l;
            }
        }
        if (truncate(path.c_str(), off_t(cut)) != 0) exit(1);
        REQUIRE_OK(flash_reader_open(reader, {path}, false, 2, file.info.experts * EXPERT_MATRICES));
        engine_spec spec;
        spec.capacities.assign(memory.layers.size(), 8);
        layer_states_init(layers, file.info.experts, spec);
        layer_hook_init(hook, file.info, memory, reader, totals, false);
        hook.prefetch.slots.assign(6, staging_slot());
        hook.layers = hook.owner = &layers;
        // A router of one input that prefers low ids.
        weights.resize(size_t(file.info.experts));
        for (size_t e = 0; e < weights.size(); e++) weights[e] = -float(e);
        ggml_tensor * router = ggml_new_tensor_2d(context, GGML_TYPE_F32, 1, file.info.experts);
        router->data = weights.data();
        hook.prefetch.forecast.inputs = 1;
        hook.prefetch.forecast.routers[size_t(layer)].weights = router;
        hook.prefetch.input.assign(2 + 2 * weights.size(), 1);
    }
    ~truncated_model() {
        flash_reader_close(reader);
        ggml_backend_buffer_free(buffer);
        ggml_free(context);
    }

    // Guesses experts `first` to `first + 5`.
    void guess(int first) {
        std::vector<uint8_t> resident(weights.size(), 0);
        for (int e = 0; e < first; e++) resident[size_t(e)] = 1;
        hook.prefetch.has_input = true;
        guess_terms terms;
        terms.resident = resident.data();
        terms.range = 1e9;  // so that all margins are alike, and all guesses likely enough
        prefetch_guess(hook.prefetch, layer, terms);
        CHECK_EQUAL(hook.prefetch.count, 6);
        for (int e = first; e < first + 6; e++) {
            CHECK(prefetch_holds(hook.prefetch, layer, e));
            expert_read_wait(hook.reads, layer, e);
        }
    }
    miss_event miss(int e) {
        hook.missed[0] = e;
        prefetch_settle(hook.prefetch, layer, hook.missed.data(), 1);
        miss_fetch_begin(hook, layer, 1);
        miss_fetch_finish(hook);
        return hook.events[0];
    }
};

static void only_a_demand_fails_a_request() {
    truncated_model m;
    m.guess(3);  // 6, 7 and 8 cannot be read
    CHECK(!failed(m.hook.error));
    const miss_event ready = m.miss(4);
    CHECK_EQUAL(ready.prefetch, PREFETCH_READY);
    CHECK_EQUAL(ready.stall_ns, 0);
    CHECK(m.memory.layers[size_t(m.layer)].present[4]);
    CHECK(!failed(m.hook.error));
    CHECK_EQUAL(m.hook.prefetch.tallies[size_t(m.layer)].right.get(), 1);
    const miss_event none = m.miss(1);
    CHECK_EQUAL(none.prefetch, PREFETCH_NONE);
    CHECK(!failed(m.hook.error));
    m.miss(7);
    CHECK_EQUAL(m.hook.error.code, ENGINE_IO);
    CHECK(!m.memory.layers[size_t(m.layer)].present[7]);
    CHECK(!m.memory.layers[size_t(m.layer)].held[7]);
    prefetch_drop(m.hook.prefetch);
    CHECK_EQUAL(m.memory.resident_bytes.load(), 2 * int64_t(m.memory.layers[size_t(m.layer)].expert_bytes));
    CHECK(m.hook.prefetch.tallies[size_t(m.layer)].wasted_bytes.get() > 0);
}

// Slots are few: new guesses take those of old ones, never those of the layer to come.
static void slots_are_the_bound() {
    truncated_model m;
    m.guess(0);
    CHECK_EQUAL(m.memory.resident_bytes.load(), 6 * int64_t(m.memory.layers[size_t(m.layer)].expert_bytes));
    m.hook.prefetch.pass++;
    m.guess(3);
    CHECK_EQUAL(m.memory.resident_bytes.load(), 6 * int64_t(m.memory.layers[size_t(m.layer)].expert_bytes));
    for (int e = 3; e < 9; e++) CHECK(m.memory.layers[size_t(m.layer)].held[size_t(e)]);
    CHECK(!prefetch_holds(m.hook.prefetch, m.layer, 0));
    prefetch_drop(m.hook.prefetch);
    CHECK_EQUAL(m.memory.resident_bytes.load(), 0 * int64_t(m.memory.layers[size_t(m.layer)].expert_bytes));
}

static void refuses_maps_that_do_not_fit() {
    truncated_model m;
    router_forecast forecast;
    router_forecast_init(forecast, 2, 32);
    forecast.inputs = 1;
    for (auto & router : forecast.routers) router.weights = m.hook.prefetch.forecast.routers[size_t(m.layer)].weights;
    forecast_map map, read;
    map.layers = 2;
    map.experts = 32;
    map.inputs = 1;
    map.coefficients.assign(size_t(forecast_features(1, 32)) * 32, 0.5f);
    const std::string path = m.folder.file("map");
    REQUIRE_OK(forecast_map_read(path, forecast, read));
    CHECK(read.coefficients.empty());
    REQUIRE_OK(forecast_map_write(path, map, forecast_fingerprint(forecast)));
    REQUIRE_OK(forecast_map_read(path, forecast, read));
    CHECK(read.coefficients == map.coefficients);
    REQUIRE_OK(forecast_map_write(path, map, forecast_fingerprint(forecast) + 1));
    CHECK_EQUAL(forecast_map_read(path, forecast, read).code, ENGINE_MODEL_FORMAT);
    map.coefficients[7] = NAN;
    REQUIRE_OK(forecast_map_write(path, map, forecast_fingerprint(forecast)));
    CHECK_EQUAL(forecast_map_read(path, forecast, read).code, ENGINE_MODEL_FORMAT);
    map.coefficients[7] = 0;
    map.coefficients.push_back(0);
    REQUIRE_OK(forecast_map_write(path, map, forecast_fingerprint(forecast)));
    CHECK_EQUAL(forecast_map_read(path, forecast, read).code, ENGINE_MODEL_FORMAT);
    map.layers = 1 << 30;
    REQUIRE_OK(forecast_map_write(path, map, forecast_fingerprint(forecast)));
    CHECK_EQUAL(forecast_map_read(path, forecast, read).code, ENGINE_MODEL_FORMAT);
    CHECK_EQUAL(forecast_map_read("/proc/self", forecast, read).code, ENGINE_MODEL_FORMAT);
}

int main() {
    only_a_demand_fails_a_request();
    slots_are_the_bound();
    refuses_maps_that_do_not_fit();
    engine * e = open_engine(options_of(MODEL, spec_of(0, 13)));
    const std::vector<int32_t> tokens = text_tokens(e, "wikitext.txt", 2000);
    changes_no_bit_of_the_output(e, tokens);
    counts_its_guesses(e, tokens);
    says_what_staging_takes(e);
    engine_free(e);
    survives_being_stopped_anywhere();
    a_fitted_map_foretells_better();
    return checks_done();
}
