// One generate request: prefill in micro-batches, then one decode per token, on the caller's thread. Between passes,
// and only there, a waiting spec comes into force; that is the token boundary.
#include "engine-state.h"
#include "sampler.h"
#include "step-queue.h"

#include <algorithm>
#include <cmath>

namespace {

// Misses of a prefill that are handed out together: small micro-batches on a long prompt read the same experts many times.
enum { PREFILL_PART_MISSES = 4096 };

struct generation {
    engine & e;
    const generate_request & request;
    generate_result & result;
    step_queue queue;
    sampler choose;
    pass_batch batch;
    int32_t limit;       // context positions
};

engine_status check_request(const engine & e, const generate_request & r) {
    if (r.prompt.empty()) return status_error(ENGINE_BAD_ARGUMENT, "prompt: expected at least one token");
    if (r.max_tokens < 0) return status_error(ENGINE_BAD_ARGUMENT, "maxTokens: expected 0 or more, found %d", r.max_tokens);
    if (!(r.temperature >= 0 && r.temperature <= 100)) {
        return status_error(ENGINE_BAD_ARGUMENT, "temperature: expected 0 to 100, found %g", r.temperature);
    }
    if (!(r.top_p > 0 && r.top_p <= 1)) return status_error(ENGINE_BAD_ARGUMENT, "topP: expected above 0 to 1, found %g", r.top_p);
    if (r.prompt.size() > size_t(e.context_tokens)) {
        return status_error(ENGINE_CONTEXT_FULL, "the prompt has %zu tokens, the context holds %d", r.prompt.size(), e.context_tokens);
    }
    return engine_check_tokens(e, r.prompt);
}

// Hands the spec in force to the hook; nothing changes it until the next boundary.
void boundary(engine & e, int32_t step) {
    engine_apply_pending(e);
    engine_serve_shrink(e);
    layer_hook & hook = e.hook;
    layer_hook_follow(hook, e.spec);
    hook.step = step;
    hook.passing = engine_passes_through(e);
    hook.passing_bytes = int64_t(e.prefill_bytes);
    hook.layers = hook.owner = &e.layers;
    hook.ring = &e.ring;
}

// Most tokens of the next micro-batch.
int32_t micro_batch(const engine & e) {
    return engine_passes_through(e) ? e.batch_tokens : std::max(1, engine_batch_limit(e, &e.layers, e.batch_tokens));
}

void add_outcome(generation & g, bool prefill) {
    const pass_outcome & o = g.e.hook.outcome;
    (prefill ? g.result.prefill_hits : g.result.decode_hits) += o.hits;
    (prefill ? g.result.prefill_misses : g.result.decode_misses) += o.misses;
    if (!prefill) {
        g.result.decode_swaps += o.swaps;
        g.result.decode_dropped += o.dropped;
    }
    g.result.flash_bytes += o.flash_bytes;
    g.result.flash_reads += o.flash_reads;
    g.result.stall_ns += o.stall_ns;
}

void push_step(generation & g, step_record & record) {
    record.end_ns = now_ns();
    record.last_miss = g.e.totals.misses.get();
    step_queue_push(g.queue, record);
}

// Hands the misses so far out as a part of the prefill, once there are many.
void push_part(generation & g, step_record & record) {
    if (record.misses < PREFILL_PART_MISSES) return;
    push_step(g, record);
    record = step_record();
    record.start_ns = now_ns();
}

engine_status prefill(generation & g, step_record & record) {
    engine & e = g.e;
    const int32_t n = int32_t(g.request.prompt.size());
    const uint64_t most_events = e.file.info.moe_layers.size() * uint64_t(e.file.info.experts);
    for (int32_t at = 0; at < n;) {
        if (e.hook.cancelled.load()) return status_error(ENGINE_CANCELLED, "cancelled");
        boundary(e, 0);
        step_queue_make_room(g.queue, most_events);
        const int32_t part = std::min(micro_batch(e), n - at);
        const engine_status status = engine_run_pass(e, e.context, g.batch, g.request.prompt.data() + at, part, at,
                                                     at + part == n ? OUTPUTS_LAST : OUTPUTS_NONE, PASS_PREFILL);
        add_outcome(g, true);
        record.hits += e.hook.outcome.hits;
        record.misses += e.hook.outcome.misses;
        if (failed(status)) return status;
        e.totals.prefill_tokens.add(part);
        at += part;
        if (at < n) push_part(g, record);
    }
    return {};
}

engine_status decode(generation & g, int32_t token, int32_t position, step_record & record) {
    engine & e = g.e;
    if (e.hook.cancelled.load()) return status_error(ENGINE_CANCELLED, "cancelled");
    boundary(e, record.step);
    step_queue_make_room(g.queue, e.file.info.moe_layers.size() * uint64_t(e.file.info.top_k));
    e.hook.capture = step_queue_slot(g.queue);
    const engine_status status = engine_run_pass(e, e.context, g.batch, &token, 1, position, OUTPUTS_LAST, PASS_ROUTED);
    record.has_logits = e.hook.capture && !failed(status);
    e.hook.capture = nullptr;
    add_outcome(g, false);
    record.hits = e.hook.outcome.hits;
    record.misses = e.hook.outcome.misses;
    if (!failed(status)) e.totals.decode_tokens.add(1);
    return status;
}

// Chooses the token that follows a pass; -1 ends the generation.
int32_t next_token(generation & g) {
    engine & e = g.e;
    if (g.result.completion_tokens >= g.request.max_tokens) return -1;
    const int32_t token = sampler_choose(g.choose, llama_get_logits_ith(e.context, -1), llama_vocab_n_tokens(e.vocab));
    if (llama_vocab_is_eog(e.vocab, token)) {
        g.result.finish = FINISH_STOP;
        return -1;
    }
    g.result.completion_tokens++;
    return token;
}

// Steps until the end, a cancellation or an error; every step taken is pushed, the failed one included, so that the
// misses it had before it failed are reported.
engine_status run_steps(generation & g) {
    engine & e = g.e;
    int32_t token = -1;
    int32_t position = int32_t(g.request.prompt.size());
    for (int32_t step = 0;; step++) {
        step_record record;
        record.step = step;
        const int64_t start = record.start_ns = now_ns();
        engine_status status = step == 0 ? prefill(g, record) : decode(g, token, position, record);
        if (!failed(status)) token = next_token(g);
        record.token = failed(status) ? -1 : token;
        push_step(g, record);
        const int64_t took = record.end_ns - start;
        (step == 0 ? g.result.prefill_ns : g.result.decode_ns) += took;
        (step == 0 ? e.totals.prefill_ns : e.totals.decode_ns).add(took);
        if (failed(status)) return status;
        if (step > 0) position++;
        if (token < 0) return {};
        if (g.result.completion_tokens == g.request.max_tokens || position == g.limit) return {};
    }
}

}  // namespace

engine_status engine_generate(engine * e, const generate_request & request, const step_callback & on_step, generate_result & out) {
    engine_status status = request.begun ? engine_status() : engine_begin(e, request.request_id);
    if (failed(status)) return status;
    try {
        out = generate_result();
        out.prompt_tokens = int64_t(request.prompt.size());
        warm_fill_yield(e->warm);
        status = check_request(*e, request);
        if (!failed(status)) status = engine_need_context(*e);
        if (!failed(status)) {
            const model_info & info = e->file.info;
            if (request.cold_cache) engine_empty_cache(*e);
            e->memory.peak_bytes = e->memory.resident_bytes.load();
            llama_memory_clear(llama_get_memory(e->context), false);
            const int64_t dropped = e->totals.events_dropped.get();
            generation g{*e, request, out, {}, {}, {}, e->context_tokens};
            sampler_init(g.choose, llama_vocab_n_tokens(e->vocab), request.temperature, request.top_p, request.seed);
            pass_batch_init(g.batch, e->batch_tokens);
            step_queue_start(g.queue, e->ring, e->vocab, on_step,
                             request.capture_router ? info.moe_layers.size() * size_t(info.experts) : 0);
            status = run_steps(g);
            step_queue_finish(g.queue);
            pass_batch_free(g.batch);
            out.peak_expert_bytes = e->memory.peak_bytes;
            out.miss_events_dropped = e->totals.events_dropped.get() - dropped;
            if (status.code == ENGINE_CANCELLED) {
                out.finish = FINISH_CANCELLED;
                status = engine_status();
            }
        }
    } catch (const std::exception & error) {
        status = status_error(ENGINE_INTERNAL, "generate: %s", error.what());
    }
    engine_end_request(*e);
    return status;
}
