// Cross-entropy of a text under a spec, with the misses it would cost. Consecutive windows of `context` tokens, each
// with an empty KV cache; every position behind the window's prompt, if it has one, is scored on its next token and routed
// as in decoding.
//
// With per-layer caches the state of a layer depends on that layer's own routing sequence alone, so a whole batch can
// be routed token by token inside the layer's callback, against a virtual cache, at the speed of prefill; stepping
// through the real cache gives the same result up to the rounding of kernels.
//
// Beside a cache that fills the memory there is room for little else. Experts pass through as a prompt's do (miss-stream.h); the
// context that generates makes room for the one that scores; and where what a micro-batch takes, above all a row of the
// vocabulary for each of its tokens, twice, is more than is granted, it is made smaller.
#include "engine-state.h"

#include "llama-runtime.h"

#include <algorithm>
#include <cmath>

namespace {

// Output rows are batch x vocabulary floats, twice; this bounds one copy.
const int64_t MOST_OUTPUT_BYTES = 64 << 20;

struct evaluation {
    engine & e;
    const evaluate_request & request;
    evaluate_result & result;
    layer_states layers;
    llama_context * context = nullptr;
    pass_batch batch;
    int32_t batch_tokens = 1;
};

engine_status check_request(const engine & e, const evaluate_request & r) {
    if (r.context < 1 || r.context > (1 << 20)) {
        return status_error(ENGINE_BAD_ARGUMENT, "context: expected 1 to %d, found %d", 1 << 20, r.context);
    }
    if (r.prompt_tokens < 0 || r.prompt_tokens >= r.context) {
        return status_error(ENGINE_BAD_ARGUMENT, "promptTokens: expected 0 to %d, so that a window of %d leaves a token to score, found %d",
                            r.context - 1, r.context, r.prompt_tokens);
    }
    if (r.record_scores && r.prompt_tokens > 0) {
        return status_error(ENGINE_BAD_ARGUMENT, "recordScores: expected windows without a prompt, whose last block is not computed in full; "
                            "found promptTokens %d", r.prompt_tokens);
    }
    const int64_t routed = int64_t(r.tokens.size()) - 1;
    if (routed < 1 || routed % r.context != 0) {
        return status_error(ENGINE_BAD_ARGUMENT, "tokens: expected N+1 with N a positive multiple of %d, found N = %lld", r.context,
                            (long long) routed);
    }
    const engine_status status = engine_check_tokens(e, r.tokens);
    return failed(status) ? status : engine_check_spec(e.file.info, r.spec);
}

// -log softmax(logits)[target], in nats.
float negative_log_likelihood(const float * logits, int vocab, int32_t target) {
    float highest = logits[0];
    for (int t = 1; t < vocab; t++) highest = std::max(highest, logits[t]);
    double total = 0;
    for (int t = 0; t < vocab; t++) total += std::exp(logits[t] - highest);
    return float(std::log(total) - double(logits[target] - highest));
}

engine_status choose_batch(evaluation & v) {
    const engine & e = v.e;
    if (v.request.stepped) return {};
    const int64_t by_output = MOST_OUTPUT_BYTES / (int64_t(sizeof(float)) * llama_vocab_n_tokens(e.vocab));
    v.batch_tokens = int32_t(std::clamp<int64_t>(by_output, 1, std::min(v.request.context, int32_t(MOST_BATCH))));
    if (!e.options.keep_all && !engine_passes_through(e)) v.batch_tokens = engine_batch_limit(e, nullptr, v.batch_tokens);
    if (v.batch_tokens > 0) return {};
    return status_error(ENGINE_CAPACITY, "prefillBytes %llu is below the %llu bytes of experts one token needs of one layer; raise it, "
                        "keep all experts in memory, do not verify, or evaluate stepped", (unsigned long long) e.prefill_bytes,
                        (unsigned long long) (uint64_t(e.file.info.top_k) *
                            *std::max_element(e.file.info.expert_bytes.begin(), e.file.info.expert_bytes.end())));
}

// What the context that generates has taken so far is there for the one that scores.
uint64_t granted_bytes(const evaluation & v) {
    const engine & e = v.e;
    if (v.request.memory_bytes == UINT64_MAX) return UINT64_MAX;
    const uint64_t rows = uint64_t(std::min(e.batch_tokens, e.widest_pass.load()));
    return v.request.memory_bytes + e.kv_bytes + e.compute_bytes * rows / uint64_t(e.batch_tokens);
}

// A buffer is in memory only as far as it has been used, so a context that proves too large has cost little.
engine_status make_context(evaluation & v) {
    const uint64_t granted = granted_bytes(v);
    if (granted != UINT64_MAX) engine_drop_context(v.e);
    for (;; v.batch_tokens /= 2) {
        llama_runtime_give_back();
        const engine_status status = engine_make_context(v.e, v.request.context, v.batch_tokens, v.batch_tokens, v.context);
        if (failed(status)) return status;
        if (v.batch_tokens / 2 < LEAST_BATCH || engine_context_bytes(v.e, v.context, v.batch_tokens) <= granted) return {};
        llama_free(v.context);
        v.context = nullptr;
    }
}

void set_up_hook(evaluation & v) {
    layer_hook & hook = v.e.hook;
    layer_hook_follow(hook, v.request.spec);
    hook.step = 0;
    hook.passing = !v.request.stepped && engine_passes_through(v.e);
    hook.passing_bytes = int64_t(v.e.prefill_bytes);
    hook.layers = &v.layers;
    hook.owner = v.request.stepped ? &v.layers : &v.e.layers;
    hook.ring = nullptr;
    hook.capture = hook.recorded = nullptr;
}

engine_status run_window(evaluation & v, int64_t first) {
    engine & e = v.e;
    const int vocab = llama_vocab_n_tokens(e.vocab);
    const int32_t prompt = v.request.prompt_tokens;
    const size_t route = size_t(v.layers.count) * size_t(e.file.info.top_k);
    llama_memory_clear(llama_get_memory(v.context), false);
    for (int32_t at = 0; at < v.request.context;) {
        if (e.hook.cancelled.load()) return status_error(ENGINE_CANCELLED, "the evaluation was cancelled");
        const bool scored = at >= prompt;
        const int32_t part = std::min(v.batch_tokens, (scored ? v.request.context : prompt) - at);
        const int32_t * tokens = v.request.tokens.data() + first + at;
        if (v.request.record_routes) e.hook.routes = v.result.routes.data() + size_t(first + at) * route;
        if (v.request.record_scores) {
            e.hook.recorded = v.result.scores.data() + size_t(first + at) * size_t(v.layers.count) * size_t(e.file.info.experts);
        }
        e.hook.route_tokens = part;
        const pass_outputs outputs = scored ? OUTPUTS_ALL : at + part == prompt ? OUTPUTS_LAST : OUTPUTS_NONE;
        const int64_t start = now_ns();
        const engine_status status = engine_run_pass(e, v.context, v.batch, tokens, part, at, outputs, scored ? PASS_ROUTED : PASS_PREFILL);
        if (failed(status)) return status;
        for (int32_t i = 0; scored && i < part; i++) {
            v.result.token_nll.push_back(negative_log_likelihood(llama_get_logits_ith(v.context, i), vocab, tokens[i + 1]));
        }
        if (v.request.stepped && scored) {
            const pass_outcome & did = e.hook.outcome;
            v.result.steps.push_back({start, now_ns(), did.hits, did.misses, did.flash_bytes, did.stall_ns});
        }
        at += part;
    }
    return {};
}

// Tallies only grow, so a window's share is what they gained.
void close_window(evaluation & v, window_result & before) {
    evaluate_result & r = v.result;
    window_result total, window;
    for (int l = 0; l < v.layers.count; l++) {
        total.hits += v.layers[l].tally.hits.get();
        total.misses += v.layers[l].tally.misses.get();
        window.range_means.push_back(range_mean_value(v.layers[l].range));
    }
    window.hits = total.hits - before.hits;
    window.misses = total.misses - before.misses;
    const size_t scored = size_t(v.request.context - v.request.prompt_tokens);
    for (size_t i = r.token_nll.size() - scored; i < r.token_nll.size(); i++) window.nll += r.token_nll[i];
    before = total;
    r.windows.push_back(std::move(window));
}

void sum_up(evaluation & v) {
    evaluate_result & r = v.result;
    double total = 0, mass = 0;
    int64_t events = 0, swaps = 0, dropped = 0;
    uint64_t evictions = 0, lifetimes = 0;
    for (const float nll : r.token_nll) total += nll;
    r.cross_entropy = total / double(r.tokens);
    for (int l = 0; l < v.layers.count; l++) {
        const layer_state & state = v.layers[l];
        const layer_tally & y = state.tally;
        layer_result one;
        one.layer = v.e.file.info.moe_layers[size_t(l)];
        one.capacity = state.cache.capacity;
        one.hits = y.hits.get();
        one.misses = y.misses.get();
        const double slots = double(std::max<int64_t>(one.hits + one.misses + y.dropped.get(), 1));
        one.miss_rate = double(one.misses) / slots;
        one.swap_rate = double(y.swaps.get()) / slots;
        one.drop_rate = double(y.dropped.get()) / slots;
        one.mass_lost = y.mass_lost.get() / double(std::max<int64_t>(y.events.get(), 1));
        one.mean_lifetime_tokens = expert_cache_mean_lifetime(state.cache);
        r.per_layer.push_back(one);
        r.hits += one.hits;
        r.misses += one.misses;
        r.prompt_hits += y.prefill_hits.get();
        r.prompt_misses += y.prefill_misses.get();
        swaps += y.swaps.get();
        dropped += y.dropped.get();
        mass += y.mass_lost.get();
        events += y.events.get();
        evictions += state.cache.evictions;
        lifetimes += state.cache.lifetime_tokens;
    }
    const double slots = double(std::max<int64_t>(r.hits + r.misses + dropped, 1));
    r.miss_rate = double(r.misses) / slots;
    r.swap_rate = double(swaps) / slots;
    r.drop_rate = double(dropped) / slots;
    r.mass_lost = mass / double(std::max<int64_t>(events, 1));
    if (evictions) r.mean_lifetime_tokens = double(lifetimes) / double(evictions);
}

engine_status run_windows(evaluation & v, const progress_callback & progress) {
    set_up_hook(v);
    const int64_t routed = int64_t(v.request.tokens.size()) - 1;
    window_result before;
    for (int64_t first = 0; first < routed; first += v.request.context) {
        if (!v.request.stepped) engine_apply_pending(v.e);
        const engine_status status = run_window(v, first);
        if (failed(status)) return status;
        close_window(v, before);
        if (progress && !progress(first + v.request.context, routed)) {
            return status_error(ENGINE_CANCELLED, "the evaluation was cancelled");
        }
    }
    sum_up(v);
    return {};
}

engine_status evaluate(evaluation & v, const progress_callback & progress) {
    engine & e = v.e;
    engine_status status = choose_batch(v);
    if (!failed(status)) status = make_context(v);
    if (failed(status)) return status;
    const int64_t start = now_ns();
    const int64_t routed = int64_t(v.request.tokens.size()) - 1;
    v.result.tokens = routed / v.request.context * (v.request.context - v.request.prompt_tokens);
    v.result.token_nll.reserve(size_t(v.result.tokens));
    if (v.request.stepped) v.result.steps.reserve(size_t(v.result.tokens));
    if (v.request.record_routes) {
        v.result.routes.assign(size_t(routed) * e.file.info.moe_layers.size() * size_t(e.file.info.top_k), -1);
    }
    if (v.request.record_scores) v.result.scores.resize(size_t(routed) * e.file.info.moe_layers.size() * size_t(e.file.info.experts));
    layer_states_init(v.layers, e.file.info.experts, v.request.spec);
    pass_batch_init(v.batch, v.batch_tokens);
    if (v.request.stepped) {
        engine_lend_cache(e);
        engine_bound_held(e, v.request.spec);
    }
    status = run_windows(v, progress);
    if (v.request.stepped) engine_take_back_cache(e);
    pass_batch_free(v.batch);
    llama_free(v.context);
    v.result.eval_ns = now_ns() - start;
    return status;
}

}  // namespace

engine_status engine_evaluate(engine * e, const evaluate_request & request, const progress_callback & progress, evaluate_result & out) {
    engine_status status = request.begun ? engine_status() : engine_begin(e, EVALUATE_REQUEST_ID);
    if (failed(status)) return status;
    try {
        warm_fill_yield(e->warm);
        out = evaluate_result();
        status = check_request(*e, request);
        if (!failed(status)) {
            evaluation v{*e, request, out, {}, nullptr, {}, 1};
            status = evaluate(v, progress);
        }
    } catch (const std::exception & error) {
        status = status_error(ENGINE_INTERNAL, "evaluate: %s", error.what());
    }
    llama_runtime_give_back();
    const engine_status made = engine_need_context(*e);
    if (!failed(status)) status = made;
    e->hook.layers = e->hook.owner = &e->layers;
    e->hook.routes = nullptr;
    e->hook.recorded = nullptr;
    engine_end_request(*e);
    return status;
}
