// Opening, describing and closing an engine, and its request slot.
#include "engine-state.h"

#include "llama-runtime.h"
#include "model-load.h"
#include "model-pack.h"
#include "model-quantize.h"
#include "model-widen.h"

#include "llama-ext.h"

#include <algorithm>
#include <exception>
#include <new>

engine_status engine_version(std::string & out) {
    const engine_status status = llama_runtime_start();
    out = llama_runtime_version();
    return status;
}

engine_status engine_inspect(const std::string & path, model_info & out) {
    try {
        model_file file;
        const engine_status status = model_file_read(path, file);
        out = std::move(file.info);
        return status;
    } catch (const std::exception & error) {
        return status_error(ENGINE_INTERNAL, "%s: %s", path.c_str(), error.what());
    }
}

engine_status engine_pack(const std::string & source, const std::string & target, bool replace, const progress_callback & progress,
                          write_result & out) {
    try {
        const engine_status status = llama_runtime_start();
        return failed(status) ? status : model_pack(source, target, replace, progress, out);
    } catch (const std::exception & error) {
        return status_error(ENGINE_INTERNAL, "%s: %s", target.c_str(), error.what());
    }
}

engine_status engine_check(const std::string & path, const progress_callback & progress, check_result & out) {
    try {
        return model_check(path, progress, out);
    } catch (const std::exception & error) {
        return status_error(ENGINE_INTERNAL, "%s: %s", path.c_str(), error.what());
    }
}

engine_status engine_widen(const std::string & source, const std::string & target, const widen_options & options,
                           const progress_callback & progress, widen_result & out) {
    try {
        const engine_status status = llama_runtime_start();
        return failed(status) ? status : model_widen(source, target, options, progress, out);
    } catch (const std::exception & error) {
        return status_error(ENGINE_INTERNAL, "%s: %s", target.c_str(), error.what());
    }
}

engine_status engine_quantize(const std::string & source, const std::string & target, const quantize_options & options,
                              const progress_callback & progress, quantize_result & out) {
    try {
        const engine_status status = llama_runtime_start();
        return failed(status) ? status : model_quantize(source, target, options, progress, out);
    } catch (const std::exception & error) {
        return status_error(ENGINE_INTERNAL, "%s: %s", target.c_str(), error.what());
    }
}

engine_status engine_begin(engine * e, const std::string & id) {
    std::lock_guard<std::mutex> lock(e->mutex);
    if (e->closed) return status_error(ENGINE_CLOSED, "the engine is closed");
    if (e->running) return status_error(ENGINE_BUSY, "request %s is running; one request at a time", e->request_id.c_str());
    e->running = true;
    e->request_id = id;
    e->hook.cancelled.store(false);
    return {};
}

void engine_abandon(engine * e) { engine_end_request(*e); }

void engine_end_request(engine & e) {
    std::lock_guard<std::mutex> lock(e.mutex);
    engine_apply_pending_locked(e);
    engine_serve_shrink(e);
    e.running = false;
    e.request_id.clear();
    e.changed.notify_all();
}

bool engine_cancel(engine * e, const std::string & request_id) {
    std::lock_guard<std::mutex> lock(e->mutex);
    if (!e->running || e->request_id != request_id) return false;
    e->hook.cancelled.store(true);
    return true;
}

void engine_empty_cache(engine & e) {
    warm_fill_yield(e.warm);
    prefetch_drop(e.hook.prefetch);
    expert_memory_clear(e.memory);
    layer_states_reset(e.layers);
}

engine_status engine_drop_cache(engine * e) {
    std::lock_guard<std::mutex> lock(e->mutex);
    if (e->closed) return status_error(ENGINE_CLOSED, "the engine is closed");
    if (e->running) return status_error(ENGINE_BUSY, "request %s is running", e->request_id.c_str());
    engine_empty_cache(*e);
    return {};
}

engine_status engine_check_tokens(const engine & e, const std::vector<int32_t> & tokens) {
    const int32_t vocab = llama_vocab_n_tokens(e.vocab);
    for (size_t i = 0; i < tokens.size(); i++) {
        if (tokens[i] < 0 || tokens[i] >= vocab) {
            return status_error(ENGINE_BAD_ARGUMENT, "token %zu: expected 0 to %d, found %d", i, vocab - 1, tokens[i]);
        }
    }
    return {};
}

// Members a layer that has routed a micro-batch holds for certain among the experts it needs: the last token's. Under LRU
// the last `capacity` experts used are members, so that those are all needed ones as soon as there are that many.
static int64_t needed_members(const expert_cache & cache, int32_t top_k) {
    return cache.eviction == EVICT_LRU ? cache.capacity : top_k;
}

int32_t engine_batch_limit(const engine & e, const layer_states * cache, int32_t most) {
    const model_info & info = e.file.info;
    int32_t limit = most;
    for (size_t l = 0; l < info.expert_bytes.size(); l++) {
        const int64_t held = cache ? needed_members((*cache)[int(l)].cache, info.top_k) : 0;
        const int64_t distinct = held + int64_t(e.prefill_bytes / info.expert_bytes[l]);
        // n tokens touch at most min(experts, n * top_k) experts of a layer.
        if (distinct < info.experts) limit = std::min<int32_t>(limit, int32_t(distinct / info.top_k));
    }
    return limit;
}

engine_status engine_make_context(engine & e, int32_t tokens, int32_t batch, int32_t outputs, llama_context *& out) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = uint32_t(tokens);
    params.n_batch = params.n_ubatch = uint32_t(batch);
    params.n_outputs_max = params.n_outputs_max_per_seq = uint32_t(outputs);
    params.n_threads = params.n_threads_batch = e.threads;
    params.op_offload = false;
    params.cb_eval = layer_hook_eval;
    params.cb_eval_user_data = &e.hook;
    params.abort_callback = layer_hook_abort;
    params.abort_callback_data = &e.hook;
    layer_hook_reserve(e.hook, batch);
    llama_runtime_errors();
    out = llama_init_from_model(e.model, params);
    if (!out) {
        return status_error(ENGINE_IO, "no context of %d tokens could be made: %s", tokens, llama_runtime_errors().c_str());
    }
    llama_attach_threadpool(out, e.compute.pool, nullptr);
    return {};
}

// Lets the hook see the graph once, without computing it.
static engine_status look_at_graph(engine & e) {
    pass_batch batch;
    pass_batch_init(batch, 1);
    const int32_t token = 0;
    engine_status status = engine_run_pass(e, e.context, batch, &token, 1, 0, OUTPUTS_LAST, PASS_LOOK);
    pass_batch_free(batch);
    llama_memory_clear(llama_get_memory(e.context), false);
    if (!failed(status)) status = layer_hook_check(e.hook);
    if (failed(status)) return status;
    const model_info & info = e.file.info;
    return expert_multiply_init(e.hook.multiply, e.compute, e.threads, info.experts, e.hook.longest_row, e.hook.longest_product,
                                int64_t(MOST_BATCH) * info.top_k);
}

static void measure(engine & e) {
    for (const auto & [type, bytes] : llama_get_memory_breakdown(e.context)) {
        if (type != &e.memory.type) e.dense_bytes += bytes.model;
        e.kv_bytes += bytes.context;
        e.compute_bytes += bytes.compute;
    }
    e.compute_bytes += uint64_t(llama_vocab_n_tokens(e.vocab)) * sizeof(float);  // the output row
    e.compute_bytes += expert_multiply_bytes(e.hook.multiply);
}

bool engine_passes_through(const engine & e) { return !e.options.keep_all && !e.options.verify; }

uint64_t engine_context_bytes(const engine & e, const llama_context * context, int32_t outputs) {
    uint64_t bytes = uint64_t(outputs) * uint64_t(llama_vocab_n_tokens(e.vocab)) * sizeof(float);
    for (const auto & [type, taken] : llama_get_memory_breakdown(context)) bytes += taken.context + taken.compute;
    return bytes;
}

void engine_drop_context(engine & e) {
    if (e.context) llama_free(e.context);
    e.context = nullptr;
    e.widest_pass.store(0);
}

engine_status engine_need_context(engine & e) {
    return e.context ? engine_status() : engine_make_context(e, e.context_tokens, e.batch_tokens, 1, e.context);
}

static uint64_t compute_bytes_of(const llama_context * context) {
    uint64_t bytes = 0;
    for (const auto & [type, taken] : llama_get_memory_breakdown(context)) bytes += taken.compute;
    return bytes;
}

// A buffer is in memory only as far as it has been used, so one that proves too large has cost nothing.
static engine_status make_main_context(engine & e) {
    for (;; e.batch_tokens /= 2) {
        const engine_status status = engine_need_context(e);
        if (failed(status)) return status;
        const uint64_t most = e.options.prompt_bytes / 2;
        if (most == 0 || e.batch_tokens / 2 < LEAST_BATCH || compute_bytes_of(e.context) <= most) return {};
        engine_drop_context(e);
    }
}

static engine_status check_options(engine & e) {
    const engine_open_options & o = e.options;
    const model_info & info = e.file.info;
    if (o.context_tokens < 0 || o.context_tokens > (1 << 20)) {
        return status_error(ENGINE_BAD_ARGUMENT, "contextTokens: expected 0 to %d, found %d", 1 << 20, o.context_tokens);
    }
    if (o.threads < 0 || o.threads > 512) return status_error(ENGINE_BAD_ARGUMENT, "threads: expected 0 to 512, found %d", o.threads);
    if (o.lanes < 0 || o.lanes > 64) return status_error(ENGINE_BAD_ARGUMENT, "lanes: expected 0 to 64, found %d", o.lanes);
    e.context_tokens = o.context_tokens ? o.context_tokens : int32_t(std::clamp<int64_t>(info.context_train, 1, 1 << 20));
    e.batch_tokens = std::min(e.context_tokens, int32_t(MOST_BATCH));
    e.threads = o.threads ? o.threads : default_threads();
    const uint64_t largest = *std::max_element(info.expert_bytes.begin(), info.expert_bytes.end());
    e.prefill_bytes = o.prefill_bytes ? o.prefill_bytes : largest * uint64_t(info.experts);
    // Half for these, half for the compute buffers, see make_main_context.
    if (o.prompt_bytes && !o.prefill_bytes) e.prefill_bytes = std::clamp(o.prompt_bytes / 2, largest * uint64_t(info.top_k), e.prefill_bytes);
    return engine_check_spec(info, o.spec);
}

// Watches each file before what is used of it is read: the first names the others, which are described only once all are watched.
static engine_status read_file(engine & e) {
    engine_status status = model_watch_add(e.watch, e.options.model_path);
    if (!failed(status)) status = model_file_read(e.options.model_path, e.file);
    if (failed(status) || e.file.info.files.size() == 1) return status;
    const std::vector<std::string> files = e.file.info.files;
    for (size_t i = 1; i < files.size() && !failed(status); i++) status = model_watch_add(e.watch, files[i]);
    if (!failed(status)) status = model_file_read(e.options.model_path, e.file);
    if (!failed(status) && e.file.info.files != files) status = status_error(ENGINE_MODEL_CHANGED, "%s: changed while it was opened; load it again", e.options.model_path.c_str());
    return status;
}

static engine_status open_engine(engine & e, bool (*cancelled)(void *), void * cancelled_data) {
    engine_status status = llama_runtime_start();
    if (!failed(status)) status = read_file(e);
    if (!failed(status)) status = check_options(e);
    if (failed(status)) return status;
    model_info & info = e.file.info;
    if (e.options.verify) {
        status = model_checksums_read(e.file, e.checksums);
        if (!failed(status)) status = dense_verify(e.file, e.checksums, cancelled, cancelled_data);
        if (failed(status)) return status;
    }
    expert_memory_init(e.memory, e.file);
    status = model_load(e.file, e.memory, cancelled, cancelled_data, e.model);
    if (failed(status)) return status;
    e.file.header = gguf_header();  // the vocabulary's bytes are with llama.cpp now
    e.vocab = llama_model_get_vocab(e.model);
    info.vocab = llama_vocab_n_tokens(e.vocab);
    status = flash_reader_open(e.reader, info.files, e.options.direct_io, e.options.lanes ? e.options.lanes : 4,
                               info.experts * EXPERT_MATRICES, e.options.read_bytes_per_second);
    if (failed(status)) return status;

    layer_states_init(e.layers, info.experts, e.options.spec);
    layer_hook_init(e.hook, info, e.memory, e.reader, e.totals, e.options.keep_all);
    e.hook.layers = e.hook.owner = &e.layers;
    cache_shrink_init(e.shrink, e.layers.count);
    e.hook.shrink = &e.shrink;
    if (e.options.verify) e.hook.checksums = &e.checksums;
    e.warm.reads = &e.hook.reads;
    e.warm.info = &info;
    e.warm.checksums = e.hook.checksums;
    e.spec = e.options.spec;
    engine_bound_held(e, e.spec);
    // One micro-batch misses at most every expert of every layer once.
    event_ring_init(e.ring, std::max<uint64_t>(4096, 2 * info.moe_layers.size() * uint64_t(info.experts)));
    status = compute_threads_start(e.compute, e.threads);
    if (!failed(status)) status = make_main_context(e);
    if (!failed(status)) status = look_at_graph(e);
    if (failed(status)) return status;
    prefetch_open(e.hook.prefetch, info.path);
    info.select_by = e.hook.routers[0].select_by;
    info.normalises_weights = e.hook.normalises_weights;
    measure(e);
    llama_runtime_give_back();
    return {};
}

static void free_resources(engine & e) {
    flash_reader_close(e.reader);  // first: lanes read into the memory of the model
    if (e.context) llama_free(e.context);
    compute_threads_stop(e.compute);
    if (e.model) llama_model_free(e.model);
    e.context = nullptr;
    e.model = nullptr;
}

engine_status engine_open(const engine_open_options & options, bool (*cancelled)(void *), void * cancelled_data, engine *& out) {
    out = nullptr;
    engine * e = nullptr;
    engine_status status;
    try {
        e = new engine;
        e->options = options;
        status = open_engine(*e, cancelled, cancelled_data);
    } catch (const std::exception & error) {
        status = status_error(ENGINE_INTERNAL, "%s: %s", options.model_path.c_str(), error.what());
    }
    if (failed(status)) {
        if (e) free_resources(*e);
        delete e;
        return status;
    }
    out = e;
    return {};
}

void engine_close(engine * e) {
    std::unique_lock<std::mutex> lock(e->mutex);
    const bool first = !e->closed;
    e->closed = true;
    e->hook.cancelled.store(true);
    e->changed.notify_all();
    e->changed.wait(lock, [&] { return !e->running; });
    if (first) free_resources(*e);
}

void engine_free(engine * e) {
    if (!e) return;
    engine_close(e);
    delete e;
}

engine_status engine_get_info(engine * e, model_info & out) {
    std::lock_guard<std::mutex> lock(e->mutex);
    if (e->closed) return status_error(ENGINE_CLOSED, "the engine is closed");
    out = e->file.info;
    return {};
}

engine_status engine_get_memory(engine * e, engine_memory & out) {
    std::lock_guard<std::mutex> lock(e->mutex);
    if (e->closed) return status_error(ENGINE_CLOSED, "the engine is closed");
    const model_info & info = e->file.info;
    const int32_t unused_rows = e->batch_tokens - std::min(e->batch_tokens, e->widest_pass.load());
    out = engine_memory{e->dense_bytes, e->kv_bytes, e->compute_bytes, 0, 0, e->prefill_bytes,
                        uint64_t(e->memory.resident_bytes.load(std::memory_order_relaxed)),
                        e->compute_bytes * uint64_t(unused_rows) / uint64_t(e->batch_tokens), e->reader.direct};
    std::vector<int32_t> capacities = e->spec.capacities;
    cache_shrink_limit(e->shrink, capacities);
    for (size_t l = 0; l < info.expert_bytes.size(); l++) {
        const int32_t held = e->options.keep_all ? info.experts : capacities[l];
        out.cache_bytes += uint64_t(held) * info.expert_bytes[l];
    }
    if (e->spec.prefetch != PREFETCH_OFF) out.staging_bytes = uint64_t(prefetch_staging_bytes(e->hook.prefetch));
    return {};
}

engine_status engine_get_counters(engine * e, engine_counters & out) {
    std::lock_guard<std::mutex> lock(e->mutex);
    if (e->closed) return status_error(ENGINE_CLOSED, "the engine is closed");
    const engine_totals & t = e->totals;
    out.prefill_tokens = t.prefill_tokens.get();
    out.decode_tokens = t.decode_tokens.get();
    out.prefill_ns = t.prefill_ns.get();
    out.decode_ns = t.decode_ns.get();
    out.stall_ns = t.stall_ns.get();
    out.flash_bytes = t.flash_bytes.get();
    out.flash_reads = t.flash_reads.get();
    out.misses_total = t.misses.get();
    out.miss_events_dropped = t.events_dropped.get();
    out.evaluation_bytes = t.evaluation_bytes.get();
    out.warm_bytes = t.warm_bytes.get();
    out.resizes = t.resizes.get();
    out.shrinks = t.shrinks.get();
    for (int i = 0; i < READ_TIME_BUCKETS; i++) {
        out.read_micros_log2[i] = 0;
        for (int lane = 0; lane < e->reader.lane_count; lane++) {
            out.read_micros_log2[i] += e->reader.lanes[size_t(lane)].read_micros_log2[i].get();
        }
    }
    const prefetcher & p = e->hook.prefetch;
    out.prefetch_active = e->spec.prefetch != PREFETCH_OFF && p.shown_active.get() != 0;
    out.prefetch_fitted = !p.map.coefficients.empty();
    out.prefetch_gain = p.trial.gain.get();
    out.prefetch_gain_error = p.trial.error.get();
    out.layers.clear();
    for (int l = 0; l < e->layers.count; l++) {
        const layer_tally & y = e->layers[l].tally;
        const prefetch_tally & g = p.tallies[size_t(l)];
        out.layers.push_back({e->file.info.moe_layers[size_t(l)], y.capacity.get(), y.resident.get(), y.hits.get(), y.misses.get(),
                              y.swaps.get(), y.prefill_hits.get(), y.prefill_misses.get(), y.events.get(), y.mass_lost.get(),
                              y.range_mean.get(), y.resize_evictions.get(), y.pressure_evictions.get(), y.warm_fills.get(), g.guesses.get(), g.right.get(), g.absent.get(), g.asked.get(), g.ready.get(), g.late.get(),
                              g.wasted_bytes.get()});
    }
    return {};
}

engine_status engine_get_expert_use(engine * e, expert_use_counts & out) {
    std::lock_guard<std::mutex> lock(e->mutex);
    if (e->closed) return status_error(ENGINE_CLOSED, "the engine is closed");
    const size_t experts = size_t(e->file.info.experts);
    out.wanted.assign(size_t(e->layers.count) * experts, 0);
    out.chosen = out.wanted;
    for (int l = 0; l < e->layers.count; l++) {
        for (size_t i = 0; i < experts; i++) {
            out.wanted[size_t(l) * experts + i] = double(e->layers[l].use[i].wanted.get());
            out.chosen[size_t(l) * experts + i] = double(e->layers[l].use[i].chosen.get());
        }
    }
    return {};
}
