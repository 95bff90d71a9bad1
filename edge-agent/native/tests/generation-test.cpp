#include "engine-fixture.h"

#include "expert-cache.h"

#include "llama.h"

#include <atomic>
#include <cstring>
#include <thread>

static const int GENERATED = 128;

struct run {
    std::vector<int32_t> tokens;
    std::string text;
    std::vector<miss_event> events;
    std::vector<engine_step> steps;
    generate_result result;
    engine_status status;
};

static generate_request request_of(const std::vector<int32_t> & prompt, int tokens) {
    generate_request r;
    r.request_id = "test";
    r.prompt = prompt;
    r.max_tokens = tokens;
    r.cold_cache = true;
    return r;
}

static run generate(engine * e, const generate_request & request) {
    run out;
    out.status = engine_generate(e, request, [&](const engine_step & s) {
        if (s.token >= 0) out.tokens.push_back(s.token);
        out.text.append(reinterpret_cast<const char *>(s.text), s.text_bytes);
        out.events.insert(out.events.end(), s.events, s.events + s.n_events);
        out.steps.push_back(s);
        CHECK_EQUAL(int64_t(s.n_events), s.misses);
        if (request.capture_router && s.step > 0) CHECK(s.router_logits != nullptr);
    }, out.result);
    return out;
}

// The same library without the hook: load, prefill in one batch, take the likeliest token. `look` sees the graph's nodes.
static std::vector<int32_t> stock_greedy(const std::vector<int32_t> & prompt, ggml_backend_sched_eval_callback look = nullptr,
                                         void * look_data = nullptr) {
    llama_model_params mp = llama_model_default_params();
    mp.use_extra_bufts = false;
    mp.n_gpu_layers = 0;
    llama_model * model = llama_model_load_from_file(MODEL, mp);
    llama_context_params cp = llama_context_default_params();
    cp.n_ctx = cp.n_batch = cp.n_ubatch = 512;
    cp.n_threads = cp.n_threads_batch = 1;
    cp.cb_eval = look;
    cp.cb_eval_user_data = look_data;
    llama_context * context = llama_init_from_model(model, cp);
    const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    std::vector<int32_t> feed = prompt, out;
    while (int(out.size()) < GENERATED) {
        if (llama_decode(context, llama_batch_get_one(feed.data(), int32_t(feed.size()))) != 0) exit(1);
        const float * logits = llama_get_logits_ith(context, -1);
        int32_t best = 0;
        for (int32_t t = 1; t < vocab; t++) {
            if (logits[t] > logits[best]) best = t;
        }
        if (llama_vocab_is_eog(llama_model_get_vocab(model), best)) break;
        out.push_back(best);
        feed.assign(1, best);
    }
    llama_free(context);
    llama_model_free(model);
    return out;
}

static void equals_stock_llama_at_lambda_zero(engine * e, const std::vector<int32_t> & prompt) {
    const std::vector<int32_t> stock = stock_greedy(prompt);
    CHECK_EQUAL(int(stock.size()), GENERATED);
    for (const int capacity : {8, 32, 4}) {
        REQUIRE_OK(engine_apply(e, spec_of(0, capacity)));
        const run ours = generate(e, request_of(prompt, GENERATED));
        REQUIRE_OK(ours.status);
        CHECK(ours.tokens == stock);
        CHECK_EQUAL(ours.result.decode_swaps, 0);
    }
}

// Pruning by its definition: the stock library with every expert in memory and each slot computed by its own expert,
// the weights of those set to 0 that this layer's cache does not hold.
struct pruned_reference {
    expert_cache caches[6];
    std::vector<uint8_t> dropped[6];
};

static bool prune_by_definition(ggml_tensor * t, bool ask, void * data) {
    pruned_reference & r = *static_cast<pruned_reference *>(data);
    const bool is_topk = strncmp(t->name, "ffn_moe_topk-", 13) == 0;
    const bool is_weights = strncmp(t->name, "ffn_moe_weights-", 16) == 0 && strchr(t->name, ' ') == nullptr;
    if (ask) return is_topk || is_weights;
    if (!is_topk && !is_weights) return true;
    CHECK_EQUAL(t->ne[is_topk ? 1 : 2], 1);
    const int layer = atoi(strchr(t->name, '-') + 1);
    expert_cache & cache = r.caches[layer];
    if (is_topk) {
        std::vector<int32_t> kept;
        r.dropped[layer].assign(4, 0);
        for (int i = 0; i < 4; i++) {
            const int32_t id = static_cast<int32_t *>(t->data)[i];
            if (i < 1 || cache.clock == 0 || cache.resident[size_t(id)]) kept.push_back(id);
            else r.dropped[layer][size_t(i)] = 1;
        }
        int32_t missed[4], evicted[4];
        cache_event event{0, 0, 0, missed, evicted};
        expert_cache_event(cache, kept.data(), int(kept.size()), event);
    } else {
        for (int i = 0; i < 4; i++) {
            if (r.dropped[layer][size_t(i)]) static_cast<float *>(t->data)[i] = 0;
        }
    }
    return true;
}

static void pruning_equals_zeroed_weights_in_stock_llama(engine * e, const std::vector<int32_t> & prompt) {
    // A prompt of one token, whose prefill is not pruned, so that both caches see the same events.
    const std::vector<int32_t> start(prompt.begin(), prompt.begin() + 1);
    for (const int capacity : {4, 10, 32}) {
        pruned_reference reference;
        for (auto & cache : reference.caches) expert_cache_init(cache, 32, capacity);
        const std::vector<int32_t> stock = stock_greedy(start, prune_by_definition, &reference);
        engine_spec spec = spec_of(0, capacity, 1);
        spec.routing = ROUTING_PRUNED;
        REQUIRE_OK(engine_apply(e, spec));
        const run ours = generate(e, request_of(start, GENERATED));
        REQUIRE_OK(ours.status);
        CHECK(ours.tokens == stock);
        const int64_t slots = int64_t(ours.tokens.size() - 1) * 6 * 4;
        CHECK_EQUAL(ours.result.decode_hits + ours.result.decode_misses + ours.result.decode_dropped, slots);
        CHECK(ours.result.decode_dropped > slots / 20);
        CHECK_EQUAL(ours.result.flash_bytes, int64_t(ours.events.size()) * 78336);
        CHECK_EQUAL(int64_t(ours.events.size()), ours.result.prefill_misses + ours.result.decode_misses);
        printf("pruned at capacity %d: %lld of %lld slots dropped, %lld missed\n", capacity, (long long) ours.result.decode_dropped,
               (long long) slots, (long long) ours.result.decode_misses);
    }
}

static void prefill_is_biased_on_demand(engine * e, const std::vector<int32_t> & prompt) {
    engine_spec spec = spec_of(0, 8, 1);
    REQUIRE_OK(engine_apply(e, spec));
    const run own = generate(e, request_of(prompt, 20));
    spec.bias_prefill = true;
    REQUIRE_OK(engine_apply(e, spec));
    CHECK(generate(e, request_of(prompt, 20)).tokens == own.tokens);
    for (const engine_routing routing : {ROUTING_CACHE_PRIOR, ROUTING_MAX_RANK, ROUTING_CUMULATIVE_THRESHOLD, ROUTING_PRUNED}) {
        spec.routing = routing;
        spec.lambda = 0.3;
        spec.max_rank = 16;
        spec.mass_threshold = 0.8;
        spec.bias_prefill = false;
        REQUIRE_OK(engine_apply(e, spec));
        const run unbiased = generate(e, request_of(prompt, 20));
        spec.bias_prefill = true;
        REQUIRE_OK(engine_apply(e, spec));
        const run biased = generate(e, request_of(prompt, 20));
        REQUIRE_OK(biased.status);
        CHECK_EQUAL(unbiased.tokens[0], own.tokens[0]);
        CHECK_EQUAL(unbiased.result.prefill_misses, own.result.prefill_misses);
        CHECK(biased.result.prefill_misses < own.result.prefill_misses);
        CHECK_EQUAL(int64_t(biased.events.size()), biased.result.prefill_misses + biased.result.decode_misses);
        engine_memory memory;
        REQUIRE_OK(engine_get_memory(e, memory));
        CHECK(memory.resident_bytes <= memory.cache_bytes);
    }
}

static void misses_carry_their_layers_lambda(engine * e, const std::vector<int32_t> & prompt) {
    engine_spec spec = spec_of(0.9, 6);
    spec.lambdas = {0, 0.01, 0.02, 0.03, 0.04, 0.05};
    spec.first_biased_layer = 1;
    REQUIRE_OK(engine_apply(e, spec));
    engine_spec in_force;
    REQUIRE_OK(engine_get_spec(e, in_force));
    CHECK(in_force.lambdas == spec.lambdas);
    const run r = generate(e, request_of(prompt, 30));
    CHECK(!r.events.empty());
    for (const auto & m : r.events) CHECK_EQUAL(m.lambda, spec.lambdas[size_t(m.layer)]);
}

static void eviction_changes_the_reads_not_the_model(engine * e, const std::vector<int32_t> & prompt) {
    engine_spec spec = spec_of(0, 10);
    REQUIRE_OK(engine_apply(e, spec));
    const run lru = generate(e, request_of(prompt, 100));
    for (const engine_eviction eviction : {EVICT_LFU, EVICT_LFRU}) {
        spec.eviction = eviction;
        REQUIRE_OK(engine_apply(e, spec));
        const run other = generate(e, request_of(prompt, 100));
        CHECK(other.tokens == lru.tokens);  // who is evicted changes the reads, not the model
        CHECK(other.result.decode_misses != lru.result.decode_misses);
        CHECK_EQUAL(other.result.decode_hits + other.result.decode_misses, lru.result.decode_hits + lru.result.decode_misses);
    }
}

static void accounts_for_every_miss(engine * e, const std::vector<int32_t> & prompt) {
    REQUIRE_OK(engine_apply(e, spec_of(0.1, 8)));
    engine_counters before, after;
    REQUIRE_OK(engine_get_counters(e, before));
    generate_request request = request_of(prompt, 40);
    request.capture_router = true;
    const run r = generate(e, request);
    REQUIRE_OK(r.status);
    REQUIRE_OK(engine_get_counters(e, after));
    CHECK_EQUAL(int64_t(r.events.size()), r.result.prefill_misses + r.result.decode_misses);
    CHECK_EQUAL(after.misses_total - before.misses_total, int64_t(r.events.size()));
    CHECK_EQUAL(r.result.decode_hits + r.result.decode_misses, 39 * 6 * 4);
    CHECK_EQUAL(r.result.miss_events_dropped, 0);
    CHECK_EQUAL(r.result.flash_bytes, int64_t(r.events.size()) * 78336);
    CHECK_EQUAL(int64_t(r.steps.size()), 40);
    CHECK_EQUAL(r.events.back().miss_number, after.misses_total);
    int64_t stall = 0, number = r.events.front().miss_number;
    for (const auto & m : r.events) {
        CHECK_EQUAL(m.miss_number, number++);
        CHECK(m.start_ns <= m.end_ns && m.queue_wait_ns >= 0 && m.stall_ns >= 0);
        CHECK(m.reads >= 3 && m.layer >= 0 && m.layer < 6 && m.expert >= 0 && m.expert < 32);
        CHECK(m.evicted_expert >= -1 && m.evicted_expert != m.expert);
        CHECK_EQUAL(m.generation, 7);
        stall += m.stall_ns;
    }
    CHECK_EQUAL(stall, r.result.stall_ns);
    engine_memory memory;
    REQUIRE_OK(engine_get_memory(e, memory));
    CHECK(memory.resident_bytes <= memory.cache_bytes);
    CHECK_EQUAL(memory.cache_bytes, 6u * 8 * 78336);
}

static void lambda_takes_effect_at_the_next_token(engine * e, const std::vector<int32_t> & prompt) {
    REQUIRE_OK(engine_apply(e, spec_of(0, 16)));
    std::atomic<int> step{0};
    std::thread changer;
    std::vector<double> lambdas(400, -1);
    generate_result result;
    generate_request request = request_of(prompt, 300);
    REQUIRE_OK(engine_generate(e, request, [&](const engine_step & s) {
        step = s.step;
        for (size_t i = 0; i < s.n_events; i++) {
            if (i > 0) CHECK_EQUAL(s.events[i].lambda, s.events[0].lambda);
            lambdas[size_t(s.step)] = s.events[i].lambda;
        }
        if (s.step == 20) changer = std::thread([&] { REQUIRE_OK(engine_apply(e, spec_of(0.25, 6, 0))); });
    }, result));
    changer.join();
    bool saw_zero = false, saw_new = false;
    for (const double l : lambdas) {
        if (l == 0) {
            saw_zero = true;
            CHECK(!saw_new);
        }
        if (l == 0.25) saw_new = true;
    }
    CHECK(saw_zero && saw_new);
    engine_memory memory;
    REQUIRE_OK(engine_get_memory(e, memory));
    CHECK(memory.resident_bytes <= 6u * 6 * 78336);
}

static void keeps_prefill_within_its_bytes(const std::vector<int32_t> & prompt) {
    engine_open_options options = options_of(MODEL, spec_of(0, 8));
    options.prefill_bytes = 2 * 78336;
    engine * small = open_engine(options);
    const run r = generate(small, request_of(prompt, 16));
    REQUIRE_OK(r.status);
    CHECK_EQUAL(r.result.prompt_tokens, int64_t(prompt.size()));
    // One micro-batch, in which each expert is counted once.
    CHECK(r.result.prefill_misses > 6 * 8);
    CHECK(r.result.prefill_hits + r.result.prefill_misses <= 6 * 32);
    evaluate_request eval;
    eval.tokens.assign(65, 5);
    eval.context = 64;
    eval.spec = spec_of(0, 8);
    evaluate_result result;
    REQUIRE_OK(engine_evaluate(small, eval, nullptr, result));
    engine_free(small);
}

// Whoever stays in the cache, and however little there is beyond it, the experts of a prompt are read once: but for those
// that make room, at most four of a layer.
static void reads_a_prompt_once_within_its_bytes_under_every_policy(const std::vector<int32_t> & prompt) {
    const int64_t expert = 78336;
    for (const engine_eviction eviction : {EVICT_LRU, EVICT_LFU, EVICT_LFRU, EVICT_ADAPTIVE}) {
        for (const int capacity : {4, 8}) {
            std::vector<run> first;
            for (const double beyond : {32.0, 9.0, 2.0, 0.5, 0.0}) {
                engine_spec spec = spec_of(0.2, capacity);
                spec.eviction = eviction;
                engine_open_options options = options_of(MODEL, spec);
                options.prefill_bytes = uint64_t(beyond * expert + 1);
                engine * e = open_engine(options);
                generate_request request = request_of(prompt, 8);
                for (size_t round = 0; round < 2; round++) {
                    const run r = generate(e, request);
                    REQUIRE_OK(r.status);
                    if (first.size() == round) first.push_back(r);
                    CHECK(r.tokens == first[round].tokens);
                    CHECK_EQUAL(r.result.prefill_misses, first[round].result.prefill_misses);
                    CHECK_EQUAL(r.result.decode_misses, first[round].result.decode_misses);
                    const int64_t missed = (r.result.prefill_misses + r.result.decode_misses) * expert;
                    CHECK(r.result.flash_bytes >= missed);
                    CHECK(r.result.flash_bytes <= missed + 6 * 4 * expert);
                    CHECK(r.result.peak_expert_bytes > 6 * (capacity - 1) * expert);
                    CHECK(double(r.result.peak_expert_bytes) <= (6 * capacity + beyond) * double(expert) + 1);
                    request.cold_cache = false;
                }
                engine_free(e);
            }
        }
    }
}

// An expert whose checksum has to be compared before it is used does not pass through: micro-batches are so small that what
// they need fits. They read the same experts over and over; their events must not pile up until the prompt is done.
static void hands_a_long_prefill_out_in_parts() {
    temporary_folder folder;
    const std::string packed = folder.file("packed.gguf");
    write_result written;
    REQUIRE_OK(engine_pack(MODEL, packed, false, nullptr, written));
    engine_open_options options = options_of(packed, spec_of(0, 4));
    options.verify = true;
    options.prefill_bytes = 1;
    options.context_tokens = 1024;
    engine * e = open_engine(options);
    std::vector<int32_t> prompt = text_tokens(e, "wikitext.txt", 3000);
    prompt.resize(600);
    const run r = generate(e, request_of(prompt, 2));
    REQUIRE_OK(r.status);
    CHECK(r.result.peak_expert_bytes <= 6 * 4 * 78336);
    int parts = 0;
    for (const engine_step & s : r.steps) {
        if (s.step > 0) break;
        parts++;
        CHECK(s.misses < 4096 + 6 * 32);
    }
    CHECK(parts > 1);
    CHECK_EQUAL(int64_t(r.events.size()), r.result.prefill_misses + r.result.decode_misses);
    CHECK_EQUAL(int(r.tokens.size()), 2);
    for (size_t i = 1; i < r.events.size(); i++) CHECK_EQUAL(r.events[i].miss_number, r.events[i - 1].miss_number + 1);
    CHECK_EQUAL(r.result.miss_events_dropped, int64_t(0));
    engine_free(e);
}

static void refuses_what_it_cannot_do(engine * e, const std::vector<int32_t> & prompt) {
    const auto code = [&](const generate_request & r) { return generate(e, r).status.code; };
    generate_request r = request_of({}, 1);
    CHECK_EQUAL(code(r), ENGINE_BAD_ARGUMENT);
    CHECK_EQUAL(code(request_of({4096}, 1)), ENGINE_BAD_ARGUMENT);
    CHECK_EQUAL(code(request_of({-1}, 1)), ENGINE_BAD_ARGUMENT);
    CHECK_EQUAL(code(request_of(std::vector<int32_t>(513, 5), 1)), ENGINE_CONTEXT_FULL);
    r = request_of(prompt, 1);
    r.temperature = NAN;
    CHECK_EQUAL(code(r), ENGINE_BAD_ARGUMENT);
    const engine_status low = engine_apply(e, spec_of(0, 3));
    CHECK_EQUAL(low.code, ENGINE_CAPACITY);
    CHECK(strstr(low.message, "4 x 78336 = 313344 bytes") != nullptr);
    CHECK_EQUAL(engine_apply(e, spec_of(0, 33)).code, ENGINE_BAD_ARGUMENT);
    CHECK_EQUAL(engine_apply(e, spec_of(NAN, 8)).code, ENGINE_BAD_ARGUMENT);
    CHECK_EQUAL(engine_apply(e, spec_of(1.01, 8)).code, ENGINE_BAD_ARGUMENT);
    CHECK_EQUAL(engine_apply(e, spec_of(0, 8, 5)).code, ENGINE_BAD_ARGUMENT);
    // A context that fills up ends the generation by length.
    REQUIRE_OK(engine_apply(e, spec_of(0, 32)));
    const run full = generate(e, request_of(std::vector<int32_t>(510, 5), 50));
    REQUIRE_OK(full.status);
    CHECK(full.result.finish == FINISH_LENGTH || full.result.finish == FINISH_STOP);
    CHECK(full.result.completion_tokens <= 3);
}

static void is_busy_cancels_and_closes(engine * e, const std::vector<int32_t> & prompt) {
    generate_result result;
    bool tried = false;
    CHECK(!engine_cancel(e, "test"));
    REQUIRE_OK(engine_generate(e, request_of(prompt, 400), [&](const engine_step & s) {
        if (s.step < 3 || tried) return;
        tried = true;
        CHECK_EQUAL(generate(e, request_of(prompt, 1)).status.code, ENGINE_BUSY);
        CHECK_EQUAL(engine_drop_cache(e).code, ENGINE_BUSY);
        CHECK(!engine_cancel(e, "another"));
        CHECK(engine_cancel(e, "test"));
    }, result));
    CHECK_EQUAL(result.finish, FINISH_CANCELLED);
    CHECK(result.completion_tokens < 400);
    // The next request is unharmed.
    const run again = generate(e, request_of(prompt, 8));
    REQUIRE_OK(again.status);
    CHECK_EQUAL(int(again.tokens.size()), 8);

    std::thread closer;
    const engine_status status = engine_generate(e, request_of(prompt, 400), [&](const engine_step & s) {
        if (s.step == 2) closer = std::thread([&] { engine_close(e); });
    }, result);
    closer.join();
    REQUIRE_OK(status);
    CHECK_EQUAL(result.finish, FINISH_CANCELLED);
    CHECK_EQUAL(generate(e, request_of(prompt, 1)).status.code, ENGINE_CLOSED);
    CHECK_EQUAL(engine_apply(e, spec_of(0, 8)).code, ENGINE_CLOSED);
    engine_close(e);
}

static void refuses_a_file_that_changed(const std::vector<int32_t> & prompt) {
    temporary_folder folder;
    const std::string path = folder.file("model.gguf");
    copy_file(MODEL, path);
    engine * e = open_engine(options_of(path, spec_of(0, 8)));
    if (truncate(path.c_str(), 3000000) != 0) exit(1);
    const run broken = generate(e, request_of(prompt, 8));
    CHECK_EQUAL(broken.status.code, ENGINE_MODEL_CHANGED);
    CHECK(strstr(broken.status.message, "to 3000000)") != nullptr);
    // The right bytes again, but who says so: it takes a load.
    copy_file(MODEL, path);
    CHECK_EQUAL(generate(e, request_of(prompt, 8)).status.code, ENGINE_MODEL_CHANGED);
    engine_free(e);
    e = open_engine(options_of(path, spec_of(0, 8)));
    const run healed = generate(e, request_of(prompt, GENERATED));
    REQUIRE_OK(healed.status);
    CHECK(healed.tokens == stock_greedy(prompt));
    engine_free(e);
}

int main() {
    engine * e = open_engine(options_of(MODEL, spec_of(0, 8)));
    const std::vector<int32_t> prompt = text_tokens(e, "wikitext.txt", 300);
    CHECK(prompt.size() > 20);
    equals_stock_llama_at_lambda_zero(e, prompt);
    pruning_equals_zeroed_weights_in_stock_llama(e, prompt);
    prefill_is_biased_on_demand(e, prompt);
    misses_carry_their_layers_lambda(e, prompt);
    eviction_changes_the_reads_not_the_model(e, prompt);
    accounts_for_every_miss(e, prompt);
    lambda_takes_effect_at_the_next_token(e, prompt);
    keeps_prefill_within_its_bytes(prompt);
    reads_a_prompt_once_within_its_bytes_under_every_policy(prompt);
    hands_a_long_prefill_out_in_parts();
    refuses_what_it_cannot_do(e, prompt);
    is_busy_cancels_and_closes(e, prompt);
    engine_free(e);
    refuses_a_file_that_changed(prompt);
    return checks_done();
}
