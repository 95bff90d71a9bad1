// The engine's public interface: a Mixture-of-Experts model whose experts stay in flash and whose router is bent,
// by a strength lambda, towards the experts that are in memory already.
//
// Every function returns a status and a message; nothing throws across this interface and nothing exits the
// process. All functions may be called from any thread. Long ones (`engine_open`, `engine_generate`,
// `engine_evaluate`, `engine_apply`, `engine_close`) block their caller, which therefore gives each a thread of its
// own. `step_callback`s come from a thread of the engine, never from the one that decodes.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

enum engine_code {
    ENGINE_OK = 0,
    ENGINE_MODEL_FORMAT,   // the file is not a model this engine can run
    ENGINE_NOT_MOE,        // a valid model without experts
    ENGINE_MODEL_CHANGED,  // the file is not the one that was loaded any more; it has to be loaded again
    ENGINE_IO,             // the operating system refused or failed a read, write or mapping
    ENGINE_BAD_ARGUMENT,
    ENGINE_CAPACITY,       // the memory granted does not hold what one token needs
    ENGINE_CONTEXT_FULL,   // the prompt leaves no room for a token
    ENGINE_BUSY,           // another request runs
    ENGINE_CLOSED,
    ENGINE_CANCELLED,      // an evaluation was cancelled; a cancelled generation ends normally instead
    ENGINE_INTERNAL,
};

struct engine_status {
    engine_code code = ENGINE_OK;
    char message[512] = "";
};

// How a token's experts are chosen; defined in routing.h.
enum engine_routing {
    ROUTING_ORIGINAL = 0, ROUTING_CACHE_PRIOR, ROUTING_MAX_RANK, ROUTING_CUMULATIVE_THRESHOLD, ROUTING_PRUNED, ROUTING_SENSITIVITY,
};

// Who leaves a full cache; defined in expert-cache.h.
enum engine_eviction {
    EVICT_LRU = 0, EVICT_LFU, EVICT_LFRU, EVICT_ADAPTIVE,
    EVICT_BELADY,  // knows the future: for engine_replay alone
};

// Speculative pre-fetch, see prefetch.h. Auto: measured while it runs, and off where it does not pay.
enum engine_prefetch { PREFETCH_AUTO = 0, PREFETCH_OFF, PREFETCH_ON };

struct engine_spec {
    engine_routing routing = ROUTING_ORIGINAL;
    double lambda = 0;                // [0, 1]
    int32_t top_j = 0;                // [0, top_k]
    std::vector<int32_t> capacities;  // experts per MoE layer, each in [top_k, experts]
    double generation = 0;
    std::vector<double> lambdas;      // one per MoE layer, in place of `lambda`; empty: `lambda` for all
    std::vector<int32_t> top_js;      // likewise, in place of `top_j`
    int32_t max_rank = 0;             // ROUTING_MAX_RANK only: [top_k, experts]
    double mass_threshold = 0;        // ROUTING_CUMULATIVE_THRESHOLD only: [0, 1]
    int32_t rank = 0;                 // ROUTING_SENSITIVITY only: [1, top_k]
    uint64_t seed = 0;                // ROUTING_SENSITIVITY only
    int32_t first_biased_layer = 0;   // that many MoE layers, from the first, keep the model's own choice
    bool bias_prefill = false;        // prompts are routed as decoding is, instead of by the model's own choice
    engine_eviction eviction = EVICT_LRU;
    double eviction_half_life = 0;    // tokens in which a use loses half of its weight in LFU and LFRU; 0: never
    engine_prefetch prefetch = PREFETCH_OFF;  // what it reads ahead takes memory beyond the capacities
};

struct tensor_place {
    std::string name;
    int32_t file = 0;     // index into model_info.files
    uint64_t offset = 0;  // from the start of that file
    uint64_t bytes = 0;
    std::string type;     // ggml's name of it, e.g. "q8_0"
    std::vector<int64_t> shape;
};

enum engine_select_by { SELECT_BY_LOGITS = 0, SELECT_BY_LOGITS_BIASED, SELECT_BY_SELECTION_SCORE };

struct model_info {
    std::string path;
    std::vector<std::string> files;       // all of the model's; the first is `path`
    uint64_t file_bytes = 0;              // of all files
    std::string architecture;
    std::string name;
    int32_t layers = 0;
    std::vector<int32_t> moe_layers;      // block index of each MoE layer, ascending
    int32_t experts = 0;
    int32_t top_k = 0;
    std::vector<uint64_t> expert_bytes;   // per MoE layer, all matrices of one expert
    uint64_t dense_bytes = 0;
    uint64_t token_cycle_bytes = 0;       // sum over MoE layers of top_k x expert_bytes
    uint64_t alignment = 32;
    int64_t pack_version = 0;             // 0: the file has no checksums
    int64_t context_train = 0;
    int64_t vocab = 0;
    engine_select_by select_by = SELECT_BY_LOGITS;
    bool normalises_weights = false;
    std::vector<tensor_place> tensors;
};

struct engine_open_options {
    std::string model_path;
    int32_t context_tokens = 0;   // 0: the model's own
    int32_t threads = 0;          // 0: physical cores minus one
    int32_t lanes = 0;            // 0: 4
    bool direct_io = true;
    uint64_t prefill_bytes = 0;   // 0: one layer's worth
    bool keep_all = false;
    uint64_t read_bytes_per_second = 0;  // experts arrive no faster, see flash-reader.h; 0: as fast as the disk is
    bool verify = false;          // check what is read against the file's checksums; it must be packed
    engine_spec spec;
};

struct engine_memory {
    uint64_t dense_bytes, kv_bytes, compute_bytes, cache_bytes, staging_bytes, prefill_bytes, resident_bytes;
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
    int64_t warm_bytes;        // read by engine_warm; not in flash_bytes
    int64_t resizes, shrinks;  // specs that changed a capacity, calls of engine_shrink
    int64_t read_micros_log2[READ_TIME_BUCKETS];
    bool prefetch_active;            // tokens are decoded with pre-fetch now
    bool prefetch_fitted;            // by a map fitted to the model, instead of its bare routers
    double prefetch_gain;            // share of a token's time that it saved when last tried; 0: not tried yet
    std::vector<layer_counters> layers;
};

// A layer's capacity became another before the layer's routing event `event`, 0 being its first: by a spec, or under
// pressure. Whoever no longer fits leaves there and then. Or, with `warmed` an expert: a warm fill admitted it there, and the
// capacity stayed what it was.
struct cache_change { int32_t layer, event, capacity, warmed = -1; };

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

// A recorded run: what the routers said of every token (`scores` or `rows`), or only what they chose (`routes`). Scores are
// token by token, every layer of each, so all layers have as many events; routes are layer by layer. At least one of the
// three is there; where scores come without routes, the model chose the top_k largest of them, ties by index.
struct route_trace {
    int32_t experts = 0;
    int32_t top_k = 0;
    std::vector<int32_t> layer_events;  // routing events of each layer
    std::vector<int32_t> routes;        // events x top_k experts, best ranked first, -1 in slots that were not used
    std::vector<float> scores;          // tokens x layers x experts; not finite: masked
    std::vector<uint8_t> rows;          // the same at a byte each: float minimum, float step, then `experts` levels to a row; see route-trace.h
    bool rows_mask = false;             // level 255 means masked; otherwise it is a level like the others
    std::vector<cache_change> changes;  // `layer` counting as in `layer_events`, a layer's in the order of events
};

// Each of `what_ifs` runs through the trace from an empty cache; its eviction may be EVICT_BELADY where nothing is bent.
struct replay_request {
    route_trace trace;
    std::vector<engine_spec> what_ifs;
    int32_t uncounted = 0;              // that many tokens, from the first, fill the caches and are not counted
};
struct replayed_layer {
    int64_t events = 0, hits = 0, misses = 0, swaps = 0, dropped = 0;
    double mass_lost = 0;               // sum over events
    int64_t evictions = 0, lifetime_tokens = 0;  // and the sum of their tokens from admission to eviction; of all events
};
struct replay_result { std::vector<std::vector<replayed_layer>> what_ifs; };

// LRU at the model's own choice, at every capacity from 0 to `experts` at once; see lru-curve.cpp. Entries of capacities below
// the trace's top_k mean nothing.
struct lru_curve_layer {
    int64_t references = 0;
    std::vector<int64_t> misses, evictions, lifetime_tokens;  // experts + 1 entries each
};
struct lru_curve { std::vector<lru_curve_layer> layers; };

struct chat_message { std::string role, content; };

struct engine;

using step_callback = std::function<void(const engine_step &)>;
// Returns whether to go on; false cancels. May come from the thread that works.
using progress_callback = std::function<bool(int64_t done, int64_t total)>;

// The evaluation that runs answers to this id in `engine_cancel`.
#define EVALUATE_REQUEST_ID "evaluate"

const char * engine_code_name(engine_code code);

// llama.cpp release and CPU backend, e.g. "v0.5.0 haswell".
engine_status engine_version(std::string & out);

// Reads and checks the header of a GGUF file; touches no tensor data. MODEL_FORMAT, NOT_MOE, IO.
engine_status engine_inspect(const std::string & path, model_info & out);

// The three ways to write a model file; see model-write.h, model-pack.h, model-widen.h and model-quantize.h. A file that is
// there already is left alone unless `replace`. An interrupted one goes on where it stopped when it is called again.
struct write_result {
    uint64_t bytes = 0;  // of the file
    uint64_t kept = 0;   // of them, left by an interrupted attempt, compared and kept
};
engine_status engine_pack(const std::string & source, const std::string & target, bool replace, const progress_callback & progress,
                          write_result & out);

// Checks a packed file against its checksums.
struct check_result {
    uint64_t bytes = 0;                 // that were read and checked
    uint64_t damaged_count = 0;
    std::vector<std::string> damaged;   // the first 1,000
};
engine_status engine_check(const std::string & path, const progress_callback & progress, check_result & out);

// Exactly one of the first three is set. `expert_bytes`: of one expert, at least; `total_bytes`: of all experts.
struct widen_options {
    int64_t width = 0;
    uint64_t expert_bytes = 0, total_bytes = 0;
    bool replace = false;
};
struct widen_result {
    write_result file;
    int64_t width = 0;
};
engine_status engine_widen(const std::string & source, const std::string & target, const widen_options & options,
                           const progress_callback & progress, widen_result & out);

// Need no engine; see replay.cpp. BAD_ARGUMENT, CAPACITY, CANCELLED.
engine_status engine_replay(const replay_request & request, const progress_callback & progress, replay_result & out);
engine_status engine_lru_curve(const route_trace & trace, int32_t uncounted, lru_curve & out);

struct quantize_options {
    std::string type;          // ggml's name of it, such as "q4_0"
    std::string down_type;     // of down matrices; empty: `type`
    bool requantize = false;   // also experts that are quantised already
    int32_t threads = 0;       // 0: physical cores minus one
    bool replace = false;
};
struct quantize_result {
    write_result file;
    double relative_error = 0;  // of all expert weights: root of (sum of squared changes / sum of squares)
};
engine_status engine_quantize(const std::string & source, const std::string & target, const quantize_options & options,
                              const progress_callback & progress, quantize_result & out);

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
