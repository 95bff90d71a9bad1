// The engine's public interface: a Mixture-of-Experts model whose experts stay in flash and whose router is bent,
// by a strength lambda, towards the experts that are in memory already.
//
// Every function returns a status and a message; nothing throws across this interface and nothing exits the
// process. All functions may be called from any thread. Long ones (`engine_open`, `engine_generate`,
// `engine_evaluate`, `engine_apply`, `engine_close`) block their caller, which therefore gives each a thread of its
// own. `step_callback`s come from a thread of the engine, never from the one that decodes.
#pragma once

#include "engine-files.h"
#include "engine-replay.h"

struct engine_open_options {
    std::string model_path;
    int32_t context_tokens = 0;   // 0: the model's own
    int32_t threads = 0;          // 0: physical cores minus one
    int32_t lanes = 0;            // 0: 4
    bool direct_io = true;
    uint64_t prefill_bytes = 0;   // 0: one layer's worth
    uint64_t prompt_bytes = 0;    // about the most that reading a prompt takes beside the cache, by smaller micro-batches and fewer experts that pass through; 0: unbounded
    bool keep_all = false;
    uint64_t read_bytes_per_second = 0;  // experts arrive no faster, see flash-reader.h; 0: as fast as the disk is
    bool verify = false;          // check what is read against the file's checksums; it must be packed
    engine_spec spec;
};

struct engine_memory {
    uint64_t dense_bytes, kv_bytes, compute_bytes, cache_bytes, staging_bytes, prefill_bytes, resident_bytes;
    uint64_t untouched_bytes;    // of compute_bytes: taken when a longer prompt than any so far is read
    bool direct_io;
};

// How much of a missing expert a speculative read had brought when its layer was routed.
enum prefetch_outcome { PREFETCH_NONE = 0, PREFETCH_LATE, PREFETCH_READY };

enum { MISS_EVENT_FIELDS = 14 };

// One flash miss. Times are nanoseconds of CLOCK_MONOTONIC.
struct miss_event {
    int64_t miss_number;    // 1, 2, 3, ... since the engine was opened
    int32_t step;           // 0: prefill
    int32_t layer;          // block index
    int32_t expert;
    int32_t evicted_expert; // -1: none
    int64_t bytes;
    int64_t start_ns, end_ns;
    int64_t queue_wait_ns, stall_ns;
    prefetch_outcome prefetch;
    int32_t reads;
    double lambda, generation;
};

struct engine_step {
    int32_t step;
    int32_t token;               // -1: generation ended with this step, or more of this step (a long prefill) follows
    const uint8_t * text;
    size_t text_bytes;
    int64_t start_ns, end_ns;
    int64_t hits, misses;
    const miss_event * events;   // `misses` of them, save those dropped
    size_t n_events;
    const float * router_logits; // MoE layers x experts, or null
};

struct generate_request {
    std::string request_id;
    std::vector<int32_t> prompt;
    int32_t max_tokens = 0;
    double temperature = 0;
    double top_p = 1;
    uint64_t seed = 0;
    bool cold_cache = false;
    bool capture_router = false;
    bool begun = false;           // `engine_begin` has taken the request slot for it
};

enum engine_finish { FINISH_STOP = 0, FINISH_LENGTH, FINISH_CANCELLED };

struct generate_result {
    int64_t prompt_tokens = 0, completion_tokens = 0;
    engine_finish finish = FINISH_LENGTH;
    int64_t prefill_ns = 0, decode_ns = 0;
    int64_t prefill_hits = 0, prefill_misses = 0, decode_hits = 0, decode_misses = 0, decode_swaps = 0, decode_dropped = 0;
    int64_t flash_bytes = 0, flash_reads = 0, stall_ns = 0, miss_events_dropped = 0;
    int64_t peak_expert_bytes = 0;   // most expert bytes in memory at any moment of it
};

// `tokens` holds N+1 ids; N, a multiple of `context`, are routed. The first `prompt_tokens` of each window are a prompt:
// prefilled, hence routed by the model's own choice unless the spec's `bias_prefill` is set, and not scored.
struct evaluate_request {
    std::vector<int32_t> tokens;
    int32_t context = 0;
    int32_t prompt_tokens = 0;    // [0, context)
    engine_spec spec;
    bool stepped = false;
    bool record_routes = false;
    bool record_scores = false;   // needs windows without a prompt
    uint64_t memory_bytes = UINT64_MAX;  // about the most that it takes beyond what the engine holds, see evaluation.cpp
    bool begun = false;           // as in generate_request; the id is EVALUATE_REQUEST_ID
};

struct layer_result {
    int32_t layer = 0, capacity = 0;
    int64_t hits = 0, misses = 0;
    double miss_rate = 0, swap_rate = 0, drop_rate = 0, mass_lost = 0;  // rates are per slot: hits, misses and dropped
    double mean_lifetime_tokens = -1;  // negative: nothing was evicted
};

enum { EVALUATE_STEP_FIELDS = 6 };

// One token of a stepped evaluation, scoring included. Times are nanoseconds of CLOCK_MONOTONIC.
struct evaluate_step {
    int64_t start_ns, end_ns, hits, misses, flash_bytes, stall_ns;
};

// What happened in one window; the caches live on across windows.
struct window_result {
    int64_t hits = 0, misses = 0;
    double nll = 0;                  // sum over its scored tokens, in nats
    std::vector<double> range_means; // per MoE layer, at the window's end
};

struct evaluate_result {
    int64_t tokens = 0;              // scored
    double cross_entropy = 0;
    int64_t hits = 0, misses = 0;    // of scored tokens
    int64_t prompt_hits = 0, prompt_misses = 0;  // one per distinct expert, layer and micro-batch
    double miss_rate = 0, swap_rate = 0, drop_rate = 0, mass_lost = 0, mean_lifetime_tokens = -1;
    std::vector<layer_result> per_layer;
    std::vector<window_result> windows;
    std::vector<float> token_nll;
    std::vector<int32_t> routes;     // all N tokens x MoE layers x top_k chosen experts, best ranked first, -1: dropped, or not
                                     // computed: of a prompt, the last block sees the last token alone
    std::vector<float> scores;       // all N tokens x MoE layers x experts router scores, as routing.h's z
    std::vector<evaluate_step> steps;  // stepped only: one per scored token
    int64_t eval_ns = 0;
};

// Fits the maps by which pre-fetch foretells a layer's experts (forecast-map.h) on whole windows of `tokens`, of which the
// last `held_out_windows` are scored instead: against the model's own choice, with a cache of `capacity` experts a layer.
struct fit_request {
    std::vector<int32_t> tokens;
    int32_t context = 0;
    int32_t held_out_windows = 1;
    int32_t capacity = 0;
    bool begun = false;              // as in generate_request; the id is EVALUATE_REQUEST_ID
};

// Of the held-out windows, with the bare router and with the map: the share of a token's top-K that is among the first K
// foretold, and how many of its absent experts are among the first 1.5 K absent ones foretold.
struct fit_layer {
    int32_t layer = 0;
    double shared_before = 0, shared_after = 0;
    int64_t absent = 0, found_before = 0, found_after = 0;
};

struct fit_result {
    std::string path;
    uint64_t bytes = 0;
    std::vector<fit_layer> layers;   // all MoE layers but the first
};

enum { READ_TIME_BUCKETS = 24 };

struct layer_counters {
    int32_t layer, capacity, resident;
    int64_t hits, misses, swaps, prefill_hits, prefill_misses, events;
    double mass_lost, range_mean;
    int64_t resize_evictions, pressure_evictions;  // experts that left for a smaller capacity: a spec's, engine_shrink's
    int64_t warm_fills;              // experts admitted by engine_warm: neither hits nor misses
    // Over decoded tokens for which the layer's misses were guessed: experts guessed, how many of these were missed, all
    // misses; guesses that were likely enough to be read, misses of which all or some had been read ahead, and bytes read
    // ahead in vain.
    int64_t guesses, guesses_right, guessable, prefetch_asked, prefetch_ready, prefetch_late, prefetch_wasted_bytes;
};

struct engine_counters {
    int64_t prefill_tokens, decode_tokens, prefill_ns, decode_ns, stall_ns;
    int64_t flash_bytes, flash_reads, misses_total, miss_events_dropped;
    int64_t evaluation_bytes;  // of flash_bytes, read to score a text; its misses are in no layer's counters
    int64_t warm_bytes;        // read by engine_warm; not in flash_bytes
    int64_t resizes, shrinks;  // specs that changed a capacity, calls of engine_shrink
    int64_t read_micros_log2[READ_TIME_BUCKETS];
    bool prefetch_active;            // tokens are decoded with pre-fetch now
    bool prefetch_fitted;            // by a map fitted to the model, instead of its bare routers
    // Share of a token's time that it saves, by the trials so far and the one under way, negative where it costs, and the standard
    // error; 0: not tried yet.
    double prefetch_gain, prefetch_gain_error;
    std::vector<layer_counters> layers;
};

enum warm_end {
    WARM_DONE = 0,    // every layer is full, or its list is at its end
    WARM_OVERTAKEN,   // another list has come
};
struct warm_result {
    warm_end end = WARM_DONE;
    int64_t experts = 0, bytes = 0;  // admitted, read
    int64_t failures = 0;            // experts that could not be read; they were passed over
    std::string last_failure;
};

// MoE layers x experts, over decoded tokens since the engine was opened: how often each expert was among the model's own top-K,
// whatever bends the router, and how often it was selected.
struct expert_use_counts { std::vector<double> wanted, chosen; };

struct chat_message { std::string role, content; };

struct engine;

using step_callback = std::function<void(const engine_step &)>;
// The evaluation that runs answers to this id in `engine_cancel`.
#define EVALUATE_REQUEST_ID "evaluate"

const char * engine_code_name(engine_code code);

// llama.cpp release and CPU backend, e.g. "v0.5.0 haswell".
engine_status engine_version(std::string & out);

// `cancelled` is polled while the model loads; null: never. On failure `out` is null.
engine_status engine_open(const engine_open_options & options, bool (*cancelled)(void *), void * cancelled_data,
                          engine *& out);

// Ends the running request, waits for it and frees everything that is large. Later calls on the engine answer
// CLOSED; the small rest goes with `engine_free`, after which the pointer is dead.
void engine_close(engine * e);
void engine_free(engine * e);

engine_status engine_get_info(engine * e, model_info & out);
engine_status engine_get_memory(engine * e, engine_memory & out);

// Returns when the spec is in force: at the next token boundary of a running request, at once when idle.
// A stepped evaluation has the cache to itself: a spec applied meanwhile is in force from its end on.
// BAD_ARGUMENT (a value or a list's length is out of range, capacity above experts), CAPACITY (below top_k).
engine_status engine_apply(engine * e, const engine_spec & spec);
// The capacities in it are those in force, after every engine_shrink since it was applied.
engine_status engine_get_spec(engine * e, engine_spec & out);
// Gives memory back: evicts down to `capacities`, one per MoE layer; those that are no lower than what is in force change
// nothing. Returns when it has been done: at the next layer of a running request, at once when idle, at the end of a
// stepped evaluation. Holds until the next spec is applied, which alone can grow a cache.
// BAD_ARGUMENT (length, capacity above experts), CAPACITY (below top_k).
engine_status engine_shrink(engine * e, const std::vector<int32_t> & capacities);
engine_status engine_drop_cache(engine * e);
// Fills the room that the cache has left, one ranked list of experts per MoE layer, best first, while no request runs; returns
// when it is done, which with requests in between may take long. A request that comes stops it at once, and it goes on
// after the request. See warm-fill.h. BAD_ARGUMENT, with nothing changed; CLOSED.
engine_status engine_warm(engine * e, const std::vector<std::vector<int32_t>> & ranked, warm_result & out);

engine_status engine_tokenize(engine * e, const std::string & text, bool add_bos, bool parse_special,
                              std::vector<int32_t> & out);
engine_status engine_detokenize(engine * e, const int32_t * tokens, size_t n, std::string & out);
engine_status engine_chat_template(engine * e, bool & has, std::string & out);
engine_status engine_apply_chat_template(engine * e, const std::vector<chat_message> & messages, std::string & out);

// Takes the request slot ahead of a request that is `begun`, so that a caller who starts it on another thread learns
// of BUSY at once and can cancel it from then on. The request gives the slot back, or `engine_abandon` does.
engine_status engine_begin(engine * e, const std::string & id);
void engine_abandon(engine * e);

// Calls `on_step` once per step, in order, from one thread that is not the decoding one; all calls have returned
// when this returns. BUSY, BAD_ARGUMENT, CONTEXT_FULL, IO.
engine_status engine_generate(engine * e, const generate_request & request, const step_callback & on_step,
                              generate_result & out);
// Ends the running request at the next graph node; false where `request_id` is not running.
bool engine_cancel(engine * e, const std::string & request_id);

// Batched: routes whole windows against virtual per-layer caches and leaves the real cache alone. Stepped: one
// token at a time through the real cache, which starts and ends empty. BUSY, BAD_ARGUMENT, CAPACITY, CANCELLED, IO.
engine_status engine_evaluate(engine * e, const evaluate_request & request, const progress_callback & progress,
                              evaluate_result & out);
// Writes `<model>.prefetch`, which the engine reads when it next opens the model. BUSY, BAD_ARGUMENT, MODEL_FORMAT,
// CAPACITY, CANCELLED, IO.
engine_status engine_fit_prefetch(engine * e, const fit_request & request, const progress_callback & progress, fit_result & out);
engine_status engine_get_counters(engine * e, engine_counters & out);
engine_status engine_get_expert_use(engine * e, expert_use_counts & out);
