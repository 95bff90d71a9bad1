#include "js-values.h"

#include <cmath>
#include <cstring>

Napi::Value from_status(Napi::Env env, const engine_status & status) {
    const Napi::Error error = Napi::Error::New(env, status.message[0] ? status.message : engine_code_name(status.code));
    error.Value().Set("code", engine_code_name(status.code));
    return error.Value();
}

static Napi::Array from_int32s(Napi::Env env, const std::vector<int32_t> & list) {
    const Napi::Array out = Napi::Array::New(env, list.size());
    for (size_t i = 0; i < list.size(); i++) out.Set(uint32_t(i), double(list[i]));
    return out;
}

static Napi::Array from_numbers(Napi::Env env, const std::vector<double> & list) {
    const Napi::Array out = Napi::Array::New(env, list.size());
    for (size_t i = 0; i < list.size(); i++) out.Set(uint32_t(i), list[i]);
    return out;
}

static const char * select_name(engine_select_by by) {
    return by == SELECT_BY_LOGITS ? "logits" : by == SELECT_BY_LOGITS_BIASED ? "logits_biased" : "selection_score";
}

static Napi::Object write_object(Napi::Env env, const write_result & r) {
    const Napi::Object out = Napi::Object::New(env);
    out.Set("bytes", double(r.bytes));
    out.Set("keptBytes", double(r.kept));
    return out;
}

Napi::Value from_write_result(Napi::Env env, const write_result & r) { return write_object(env, r); }

Napi::Value from_widen_result(Napi::Env env, const widen_result & r) {
    const Napi::Object out = write_object(env, r.file);
    out.Set("width", double(r.width));
    return out;
}

Napi::Value from_quantize_result(Napi::Env env, const quantize_result & r) {
    const Napi::Object out = write_object(env, r.file);
    out.Set("relativeError", r.relative_error);
    return out;
}

Napi::Value from_check_result(Napi::Env env, const check_result & r) {
    const Napi::Object out = Napi::Object::New(env);
    out.Set("checkedBytes", double(r.bytes));
    out.Set("damagedCount", double(r.damaged_count));
    const Napi::Array names = Napi::Array::New(env, r.damaged.size());
    for (size_t i = 0; i < r.damaged.size(); i++) names.Set(uint32_t(i), r.damaged[i]);
    out.Set("damaged", names);
    return out;
}

Napi::Value from_info(Napi::Env env, const model_info & info) {
    const Napi::Object out = Napi::Object::New(env);
    out.Set("path", info.path);
    const Napi::Array files = Napi::Array::New(env, info.files.size());
    for (size_t i = 0; i < info.files.size(); i++) files.Set(uint32_t(i), info.files[i]);
    out.Set("files", files);
    out.Set("fileBytes", double(info.file_bytes));
    out.Set("architecture", info.architecture);
    out.Set("name", info.name);
    out.Set("layers", info.layers);
    out.Set("moeLayers", from_int32s(env, info.moe_layers));
    out.Set("experts", info.experts);
    out.Set("topK", info.top_k);
    const Napi::Array bytes = Napi::Array::New(env, info.expert_bytes.size());
    for (size_t i = 0; i < info.expert_bytes.size(); i++) bytes.Set(uint32_t(i), double(info.expert_bytes[i]));
    out.Set("expertBytes", bytes);
    out.Set("denseBytes", double(info.dense_bytes));
    out.Set("tokenCycleBytes", double(info.token_cycle_bytes));
    out.Set("alignment", double(info.alignment));
    out.Set("packVersion", double(info.pack_version));
    out.Set("contextTrain", double(info.context_train));
    out.Set("vocab", double(info.vocab));
    out.Set("selectBy", select_name(info.select_by));
    out.Set("normalisesWeights", info.normalises_weights);
    const Napi::Array tensors = Napi::Array::New(env, info.tensors.size());
    for (size_t i = 0; i < info.tensors.size(); i++) {
        const Napi::Object t = Napi::Object::New(env);
        t.Set("name", info.tensors[i].name);
        t.Set("file", info.tensors[i].file);
        t.Set("offset", double(info.tensors[i].offset));
        t.Set("bytes", double(info.tensors[i].bytes));
        t.Set("type", info.tensors[i].type);
        const Napi::Array shape = Napi::Array::New(env, info.tensors[i].shape.size());
        for (size_t d = 0; d < info.tensors[i].shape.size(); d++) shape.Set(uint32_t(d), double(info.tensors[i].shape[d]));
        t.Set("shape", shape);
        tensors.Set(uint32_t(i), t);
    }
    out.Set("tensors", tensors);
    return out;
}

Napi::Value from_spec(Napi::Env env, const engine_spec & spec) {
    const Napi::Object out = Napi::Object::New(env);
    out.Set("routing", ROUTING_NAMES[spec.routing]);
    out.Set("lambda", spec.lambda);
    out.Set("topJ", spec.top_j);
    out.Set("capacities", from_int32s(env, spec.capacities));
    out.Set("generation", spec.generation);
    out.Set("lambdas", spec.lambdas.empty() ? env.Null() : from_numbers(env, spec.lambdas).As<Napi::Value>());
    out.Set("topJs", spec.top_js.empty() ? env.Null() : from_int32s(env, spec.top_js).As<Napi::Value>());
    out.Set("maxRank", spec.max_rank);
    out.Set("massThreshold", spec.mass_threshold);
    out.Set("rank", spec.rank);
    out.Set("seed", double(spec.seed));
    out.Set("firstBiasedLayer", spec.first_biased_layer);
    out.Set("biasPrefill", spec.bias_prefill);
    out.Set("eviction", EVICTION_NAMES[spec.eviction]);
    out.Set("evictionHalfLifeTokens", spec.eviction_half_life);
    out.Set("prefetch", PREFETCH_NAMES[spec.prefetch]);
    return out;
}

Napi::Value from_memory(Napi::Env env, const engine_memory & m) {
    const Napi::Object out = Napi::Object::New(env);
    out.Set("denseBytes", double(m.dense_bytes));
    out.Set("kvBytes", double(m.kv_bytes));
    out.Set("computeBytes", double(m.compute_bytes));
    out.Set("cacheBytes", double(m.cache_bytes));
    out.Set("prefillBytes", double(m.prefill_bytes));
    out.Set("untouchedBytes", double(m.untouched_bytes));
    out.Set("stagingBytes", double(m.staging_bytes));
    out.Set("residentBytes", double(m.resident_bytes));
    out.Set("directIo", m.direct_io);
    return out;
}

Napi::Value from_generate_result(Napi::Env env, const generate_result & r) {
    const Napi::Object out = Napi::Object::New(env);
    out.Set("promptTokens", double(r.prompt_tokens));
    out.Set("completionTokens", double(r.completion_tokens));
    out.Set("finishReason", r.finish == FINISH_STOP ? "stop" : r.finish == FINISH_LENGTH ? "length" : "cancelled");
    out.Set("prefillNs", double(r.prefill_ns));
    out.Set("decodeNs", double(r.decode_ns));
    out.Set("prefillHits", double(r.prefill_hits));
    out.Set("prefillMisses", double(r.prefill_misses));
    out.Set("decodeHits", double(r.decode_hits));
    out.Set("decodeMisses", double(r.decode_misses));
    out.Set("decodeSwaps", double(r.decode_swaps));
    out.Set("decodeDropped", double(r.decode_dropped));
    out.Set("flashBytes", double(r.flash_bytes));
    out.Set("flashReads", double(r.flash_reads));
    out.Set("stallNs", double(r.stall_ns));
    out.Set("missEventsDropped", double(r.miss_events_dropped));
    out.Set("peakExpertBytes", double(r.peak_expert_bytes));
    return out;
}

static Napi::Value number_or_null(Napi::Env env, double v) {
    return v < 0 ? env.Null() : Napi::Number::New(env, v).As<Napi::Value>();
}

static Napi::Value from_windows(Napi::Env env, const std::vector<window_result> & windows) {
    const Napi::Array out = Napi::Array::New(env, windows.size());
    for (size_t i = 0; i < windows.size(); i++) {
        const window_result & w = windows[i];
        const Napi::Object one = Napi::Object::New(env);
        one.Set("hits", double(w.hits));
        one.Set("misses", double(w.misses));
        one.Set("nll", w.nll);
        const Napi::Array means = Napi::Array::New(env, w.range_means.size());
        for (size_t l = 0; l < w.range_means.size(); l++) means.Set(uint32_t(l), w.range_means[l]);
        one.Set("rangeMeans", means);
        out.Set(uint32_t(i), one);
    }
    return out;
}

// EVAL_STEP of native.ts.
static Napi::Value from_evaluate_steps(Napi::Env env, const std::vector<evaluate_step> & steps) {
    if (steps.empty()) return env.Null();
    Napi::Float64Array out = Napi::Float64Array::New(env, steps.size() * EVALUATE_STEP_FIELDS);
    double * to = out.Data();
    for (const evaluate_step & s : steps) {
        for (const int64_t value : {s.start_ns, s.end_ns, s.hits, s.misses, s.flash_bytes, s.stall_ns}) *to++ = double(value);
    }
    return out;
}

static Napi::Value from_routes(Napi::Env env, const std::vector<int32_t> & routes) {
    if (routes.empty()) return env.Null();
    Napi::Int32Array out = Napi::Int32Array::New(env, routes.size());
    memcpy(out.Data(), routes.data(), routes.size() * sizeof(int32_t));
    return out;
}

Napi::Value from_fit_result(Napi::Env env, const fit_result & r) {
    const Napi::Object out = Napi::Object::New(env);
    out.Set("path", r.path);
    out.Set("bytes", double(r.bytes));
    const Napi::Array layers = Napi::Array::New(env, r.layers.size());
    for (size_t i = 0; i < r.layers.size(); i++) {
        const fit_layer & l = r.layers[i];
        const Napi::Object one = Napi::Object::New(env);
        one.Set("layer", l.layer);
        one.Set("sharedBefore", l.shared_before);
        one.Set("sharedAfter", l.shared_after);
        one.Set("absent", double(l.absent));
        one.Set("foundBefore", double(l.found_before));
        one.Set("foundAfter", double(l.found_after));
        layers.Set(uint32_t(i), one);
    }
    out.Set("layers", layers);
    return out;
}

static Napi::Value from_scores(Napi::Env env, const std::vector<float> & scores) {
    if (scores.empty()) return env.Null();
    Napi::Float32Array out = Napi::Float32Array::New(env, scores.size());
    memcpy(out.Data(), scores.data(), scores.size() * sizeof(float));
    return out;
}

Napi::Value from_evaluate_result(Napi::Env env, const evaluate_result & r) {
    const Napi::Object out = Napi::Object::New(env);
    out.Set("tokens", double(r.tokens));
    out.Set("crossEntropy", r.cross_entropy);
    out.Set("hits", double(r.hits));
    out.Set("misses", double(r.misses));
    out.Set("promptHits", double(r.prompt_hits));
    out.Set("promptMisses", double(r.prompt_misses));
    out.Set("missRate", r.miss_rate);
    out.Set("swapRate", r.swap_rate);
    out.Set("dropRate", r.drop_rate);
    out.Set("massLost", r.mass_lost);
    out.Set("meanLifetimeTokens", number_or_null(env, r.mean_lifetime_tokens));
    const Napi::Array layers = Napi::Array::New(env, r.per_layer.size());
    for (size_t i = 0; i < r.per_layer.size(); i++) {
        const layer_result & l = r.per_layer[i];
        const Napi::Object one = Napi::Object::New(env);
        one.Set("layer", l.layer);
        one.Set("capacity", l.capacity);
        one.Set("hits", double(l.hits));
        one.Set("misses", double(l.misses));
        one.Set("missRate", l.miss_rate);
        one.Set("swapRate", l.swap_rate);
        one.Set("dropRate", l.drop_rate);
        one.Set("massLost", l.mass_lost);
        one.Set("meanLifetimeTokens", number_or_null(env, l.mean_lifetime_tokens));
        layers.Set(uint32_t(i), one);
    }
    out.Set("perLayer", layers);
    out.Set("windows", from_windows(env, r.windows));
    Napi::Float32Array nll = Napi::Float32Array::New(env, r.token_nll.size());
    if (!r.token_nll.empty()) memcpy(nll.Data(), r.token_nll.data(), r.token_nll.size() * sizeof(float));
    out.Set("tokenNll", nll);
    out.Set("routes", from_routes(env, r.routes));
    out.Set("scores", from_scores(env, r.scores));
    out.Set("steps", from_evaluate_steps(env, r.steps));
    out.Set("evalNs", double(r.eval_ns));
    return out;
}

static Napi::Value from_replayed_layer(Napi::Env env, const replayed_layer & l) {
    const Napi::Object out = Napi::Object::New(env);
    out.Set("events", double(l.events));
    out.Set("hits", double(l.hits));
    out.Set("misses", double(l.misses));
    out.Set("swaps", double(l.swaps));
    out.Set("dropped", double(l.dropped));
    out.Set("massLost", l.mass_lost);
    out.Set("evictions", double(l.evictions));
    out.Set("lifetimeTokens", double(l.lifetime_tokens));
    return out;
}

Napi::Value from_replay_result(Napi::Env env, const replay_result & r) {
    const Napi::Array out = Napi::Array::New(env, r.what_ifs.size());
    for (size_t i = 0; i < r.what_ifs.size(); i++) {
        const Napi::Array layers = Napi::Array::New(env, r.what_ifs[i].size());
        for (size_t l = 0; l < r.what_ifs[i].size(); l++) layers.Set(uint32_t(l), from_replayed_layer(env, r.what_ifs[i][l]));
        out.Set(uint32_t(i), layers);
    }
    return out;
}

static Napi::Value from_counts(Napi::Env env, const std::vector<int64_t> & counts) {
    Napi::Float64Array out = Napi::Float64Array::New(env, counts.size());
    for (size_t i = 0; i < counts.size(); i++) out[i] = double(counts[i]);
    return out;
}

Napi::Value from_lru_curve(Napi::Env env, const lru_curve & r) {
    const Napi::Array out = Napi::Array::New(env, r.layers.size());
    for (size_t i = 0; i < r.layers.size(); i++) {
        const Napi::Object one = Napi::Object::New(env);
        one.Set("references", double(r.layers[i].references));
        one.Set("misses", from_counts(env, r.layers[i].misses));
        one.Set("evictions", from_counts(env, r.layers[i].evictions));
        one.Set("lifetimeTokens", from_counts(env, r.layers[i].lifetime_tokens));
        out.Set(uint32_t(i), one);
    }
    return out;
}

Napi::Value from_warm_result(Napi::Env env, const warm_result & r) {
    const Napi::Object out = Napi::Object::New(env);
    out.Set("done", r.end == WARM_DONE);
    out.Set("experts", double(r.experts));
    out.Set("bytes", double(r.bytes));
    out.Set("failures", double(r.failures));
    out.Set("lastFailure", r.last_failure);
    return out;
}

static Napi::Value from_doubles(Napi::Env env, const std::vector<double> & values) {
    Napi::Float64Array out = Napi::Float64Array::New(env, values.size());
    if (!values.empty()) memcpy(out.Data(), values.data(), values.size() * sizeof(double));
    return out;
}

Napi::Value from_expert_use(Napi::Env env, const expert_use_counts & c) {
    const Napi::Object out = Napi::Object::New(env);
    out.Set("wanted", from_doubles(env, c.wanted));
    out.Set("chosen", from_doubles(env, c.chosen));
    return out;
}

Napi::Value from_counters(Napi::Env env, const engine_counters & c) {
    const Napi::Object out = Napi::Object::New(env);
    out.Set("prefillTokens", double(c.prefill_tokens));
    out.Set("decodeTokens", double(c.decode_tokens));
    out.Set("prefillNs", double(c.prefill_ns));
    out.Set("decodeNs", double(c.decode_ns));
    out.Set("stallNs", double(c.stall_ns));
    out.Set("flashBytes", double(c.flash_bytes));
    out.Set("flashReads", double(c.flash_reads));
    out.Set("missesTotal", double(c.misses_total));
    out.Set("missEventsDropped", double(c.miss_events_dropped));
    out.Set("evaluationBytes", double(c.evaluation_bytes));
    out.Set("warmBytes", double(c.warm_bytes));
    out.Set("resizes", double(c.resizes));
    out.Set("shrinks", double(c.shrinks));
    const Napi::Array buckets = Napi::Array::New(env, READ_TIME_BUCKETS);
    for (uint32_t i = 0; i < READ_TIME_BUCKETS; i++) buckets.Set(i, double(c.read_micros_log2[i]));
    out.Set("readMicrosLog2", buckets);
    out.Set("prefetchActive", c.prefetch_active);
    out.Set("prefetchFitted", c.prefetch_fitted);
    out.Set("prefetchGain", c.prefetch_gain);
    out.Set("prefetchGainError", c.prefetch_gain_error);
    const Napi::Array layers = Napi::Array::New(env, c.layers.size());
    for (size_t i = 0; i < c.layers.size(); i++) {
        const layer_counters & l = c.layers[i];
        const Napi::Object one = Napi::Object::New(env);
        one.Set("layer", l.layer);
        one.Set("capacity", l.capacity);
        one.Set("resident", l.resident);
        one.Set("hits", double(l.hits));
        one.Set("misses", double(l.misses));
        one.Set("swaps", double(l.swaps));
        one.Set("prefillHits", double(l.prefill_hits));
        one.Set("prefillMisses", double(l.prefill_misses));
        one.Set("massLost", l.mass_lost);
        one.Set("events", double(l.events));
        one.Set("rangeMean", l.range_mean);
        one.Set("resizeEvictions", double(l.resize_evictions));
        one.Set("pressureEvictions", double(l.pressure_evictions));
        one.Set("warmFills", double(l.warm_fills));
        one.Set("guesses", double(l.guesses));
        one.Set("guessesRight", double(l.guesses_right));
        one.Set("guessable", double(l.guessable));
        one.Set("prefetchAsked", double(l.prefetch_asked));
        one.Set("prefetchReady", double(l.prefetch_ready));
        one.Set("prefetchLate", double(l.prefetch_late));
        one.Set("prefetchWastedBytes", double(l.prefetch_wasted_bytes));
        layers.Set(uint32_t(i), one);
    }
    out.Set("layers", layers);
    return out;
}

Napi::Value from_tokens(Napi::Env env, const std::vector<int32_t> & tokens) {
    Napi::Int32Array out = Napi::Int32Array::New(env, tokens.size());
    if (!tokens.empty()) memcpy(out.Data(), tokens.data(), tokens.size() * sizeof(int32_t));
    return out;
}

Napi::Value from_bytes(Napi::Env env, const void * data, size_t n) {
    Napi::Uint8Array out = Napi::Uint8Array::New(env, n);
    if (n > 0) memcpy(out.Data(), data, n);
    return out;
}

step_copy copy_step(const engine_step & step, size_t router_floats) {
    step_copy copy;
    copy.step = step;
    copy.text.assign(reinterpret_cast<const char *>(step.text), step.text_bytes);
    copy.events.reserve(step.n_events * MISS_EVENT_FIELDS);
    for (size_t i = 0; i < step.n_events; i++) {
        const miss_event & m = step.events[i];
        // The order of MISS_EVENT in native.ts.
        const double fields[MISS_EVENT_FIELDS] = {
            double(m.miss_number), double(m.step), double(m.layer), double(m.expert), double(m.bytes), double(m.start_ns),
            double(m.end_ns), double(m.queue_wait_ns), double(m.stall_ns), double(m.evicted_expert), double(m.prefetch), m.lambda,
            m.generation, double(m.reads)};
        copy.events.insert(copy.events.end(), fields, fields + MISS_EVENT_FIELDS);
    }
    if (step.router_logits) copy.router_logits.assign(step.router_logits, step.router_logits + router_floats);
    return copy;
}

Napi::Value from_step(Napi::Env env, const step_copy & copy) {
    const Napi::Object out = Napi::Object::New(env);
    out.Set("step", copy.step.step);
    out.Set("token", copy.step.token);
    out.Set("text", from_bytes(env, copy.text.data(), copy.text.size()));
    out.Set("startNs", double(copy.step.start_ns));
    out.Set("endNs", double(copy.step.end_ns));
    out.Set("hits", double(copy.step.hits));
    out.Set("misses", double(copy.step.misses));
    Napi::Float64Array events = Napi::Float64Array::New(env, copy.events.size());
    if (!copy.events.empty()) memcpy(events.Data(), copy.events.data(), copy.events.size() * sizeof(double));
    out.Set("missEvents", events);
    if (copy.router_logits.empty()) {
        out.Set("routerLogits", env.Null());
    } else {
        Napi::Float32Array logits = Napi::Float32Array::New(env, copy.router_logits.size());
        memcpy(logits.Data(), copy.router_logits.data(), copy.router_logits.size() * sizeof(float));
        out.Set("routerLogits", logits);
    }
    return out;
}
