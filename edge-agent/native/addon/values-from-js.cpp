#include "js-values.h"

#include <algorithm>
#include <cmath>
#include <cstring>

static engine_status bad_argument(const char * what, const char * field, const char * expected) {
    engine_status s;
    s.code = ENGINE_BAD_ARGUMENT;
    snprintf(s.message, sizeof(s.message), "%s%s%s: expected %s", what, field[0] ? "." : "", field, expected);
    return s;
}

object_reader read_object(Napi::Env env, const Napi::Value & value, const char * what) {
    object_reader r{env, value, what, {}};
    if (!value.IsObject()) r.status = bad_argument(what, "", "an object");
    return r;
}

// The field's value, or an empty one where the reader has failed or a getter threw.
static Napi::Value field_value(object_reader & r, const char * field) {
    if (r.status.code != ENGINE_OK) return Napi::Value();
    const Napi::Value v = r.value.As<Napi::Object>().Get(field);
    if (!r.env.IsExceptionPending()) return v;
    r.env.GetAndClearPendingException();
    r.status = bad_argument(r.what, field, "a readable value");
    return Napi::Value();
}

double read_number(object_reader & r, const char * field) {
    const Napi::Value v = field_value(r, field);
    if (v.IsEmpty()) return 0;
    if (v.IsNumber()) return v.As<Napi::Number>().DoubleValue();
    r.status = bad_argument(r.what, field, "a number");
    return 0;
}

static double read_whole(object_reader & r, const char * field, double least, double most) {
    const double v = read_number(r, field);
    if (r.status.code == ENGINE_OK && !(v == std::floor(v) && v >= least && v <= most)) {
        r.status = bad_argument(r.what, field, "a whole number in range");
        return 0;
    }
    return v;
}

int32_t read_int32(object_reader & r, const char * field) { return int32_t(read_whole(r, field, INT32_MIN, INT32_MAX)); }

bool read_bool(object_reader & r, const char * field) {
    const Napi::Value v = field_value(r, field);
    if (v.IsEmpty()) return false;
    if (v.IsBoolean()) return v.As<Napi::Boolean>().Value();
    r.status = bad_argument(r.what, field, "true or false");
    return false;
}

std::string read_string(object_reader & r, const char * field) {
    const Napi::Value v = field_value(r, field);
    if (v.IsEmpty()) return "";
    if (v.IsString()) return v.As<Napi::String>().Utf8Value();
    r.status = bad_argument(r.what, field, "a string");
    return "";
}

engine_status to_tokens(const Napi::Value & value, const char * what, std::vector<int32_t> & out) {
    if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_int32_array) {
        return bad_argument(what, "", "an Int32Array");
    }
    Napi::Int32Array array = value.As<Napi::Int32Array>();
    if (array.ElementLength() > 0) out.assign(array.Data(), array.Data() + array.ElementLength());
    else out.clear();
    return {};
}

std::vector<int32_t> read_int32_array(object_reader & r, const char * field) {
    std::vector<int32_t> out;
    const Napi::Value v = field_value(r, field);
    if (!v.IsEmpty()) r.status = to_tokens(v, field, out);
    return out;
}

// Whether an optional field is there; null and undefined both mean that it is not.
static bool has_field(object_reader & r, const char * field) {
    const Napi::Value v = field_value(r, field);
    return !v.IsEmpty() && !v.IsUndefined() && !v.IsNull();
}

// A plain array of numbers.
static std::vector<double> read_numbers(object_reader & r, const char * field) {
    std::vector<double> out;
    const Napi::Value list = field_value(r, field);
    if (list.IsEmpty()) return out;
    const bool is_array = list.IsArray();
    const uint32_t n = is_array ? std::min<uint32_t>(list.As<Napi::Array>().Length(), 100000) : 0;
    for (uint32_t i = 0; i < n && r.status.code == ENGINE_OK; i++) {
        const Napi::Value v = list.As<Napi::Array>().Get(i);
        if (r.env.IsExceptionPending()) r.env.GetAndClearPendingException();
        if (!v.IsEmpty() && v.IsNumber()) out.push_back(v.As<Napi::Number>().DoubleValue());
        else r.status = bad_argument(r.what, field, "an array of numbers");
    }
    if (!is_array) r.status = bad_argument(r.what, field, "an array of numbers");
    return out;
}

static std::vector<int32_t> read_whole_numbers(object_reader & r, const char * field) {
    std::vector<int32_t> out;
    for (const double n : read_numbers(r, field)) {
        if (n == std::floor(n) && std::fabs(n) <= INT32_MAX) out.push_back(int32_t(n));
        else r.status = bad_argument(r.what, field, "an array of whole numbers");
    }
    return out;
}

// Index of the field's value among `names`.
template <size_t N> static int read_name(object_reader & r, const char * field, const char * const (&names)[N]) {
    const std::string text = read_string(r, field);
    if (r.status.code != ENGINE_OK) return 0;
    std::string known;
    for (size_t i = 0; i < N; i++) {
        if (text == names[i]) return int(i);
        known += std::string(i ? ", '" : "'") + names[i] + "'";
    }
    r.status = bad_argument(r.what, field, known.c_str());
    return 0;
}

// The optional fields keep the defaults of engine_spec, save that whoever names no eviction gets the policy that misses least.
static void read_optional_spec(object_reader & r, engine_spec & out) {
    if (has_field(r, "lambdas")) out.lambdas = read_numbers(r, "lambdas");
    if (has_field(r, "topJs")) out.top_js = read_whole_numbers(r, "topJs");
    if (has_field(r, "maxRank")) out.max_rank = read_int32(r, "maxRank");
    if (has_field(r, "massThreshold")) out.mass_threshold = read_number(r, "massThreshold");
    if (has_field(r, "rank")) out.rank = read_int32(r, "rank");
    if (has_field(r, "seed")) out.seed = uint64_t(read_whole(r, "seed", 0, 9007199254740991.0));
    if (has_field(r, "firstBiasedLayer")) out.first_biased_layer = read_int32(r, "firstBiasedLayer");
    if (has_field(r, "biasPrefill")) out.bias_prefill = read_bool(r, "biasPrefill");
    out.eviction = EVICT_ADAPTIVE;
    if (has_field(r, "eviction")) out.eviction = engine_eviction(read_name(r, "eviction", EVICTION_NAMES));
    if (has_field(r, "evictionHalfLifeTokens")) out.eviction_half_life = read_number(r, "evictionHalfLifeTokens");
    if (has_field(r, "prefetch")) out.prefetch = engine_prefetch(read_name(r, "prefetch", PREFETCH_NAMES));
}

engine_status to_spec(Napi::Env env, const Napi::Value & value, engine_spec & out) {
    object_reader r = read_object(env, value, "spec");
    out.routing = engine_routing(read_name(r, "routing", ROUTING_NAMES));
    out.lambda = read_number(r, "lambda");
    out.top_j = read_int32(r, "topJ");
    out.generation = read_number(r, "generation");
    out.capacities = read_whole_numbers(r, "capacities");
    read_optional_spec(r, out);
    return r.status;
}

engine_status to_capacities(Napi::Env env, const Napi::Value & value, std::vector<int32_t> & out) {
    const Napi::Object holder = Napi::Object::New(env);
    holder.Set("capacities", value);
    object_reader r = read_object(env, holder, "shrink");
    out = read_whole_numbers(r, "capacities");
    return r.status;
}

engine_status to_ranked(Napi::Env env, const Napi::Value & value, std::vector<std::vector<int32_t>> & out) {
    if (!value.IsArray()) return bad_argument("warm", "", "an array with an Int32Array for each MoE layer");
    const Napi::Array lists = value.As<Napi::Array>();
    for (uint32_t i = 0; i < lists.Length(); i++) {
        const Napi::Value list = lists.Get(i);
        if (env.IsExceptionPending()) env.GetAndClearPendingException();
        out.emplace_back();
        const engine_status status = to_tokens(list.IsEmpty() ? env.Undefined() : list, "warm", out.back());
        if (status.code != ENGINE_OK) return status;
    }
    return {};
}

engine_spec read_spec(object_reader & r, const char * field) {
    engine_spec spec;
    const Napi::Value v = field_value(r, field);
    if (!v.IsEmpty()) r.status = to_spec(r.env, v, spec);
    return spec;
}

engine_status to_string(const Napi::Value & value, const char * what, std::string & out) {
    if (!value.IsString()) return bad_argument(what, "", "a string");
    out = value.As<Napi::String>().Utf8Value();
    return {};
}

engine_status to_open_options(Napi::Env env, const Napi::Value & value, engine_open_options & out) {
    object_reader r = read_object(env, value, "options");
    out.model_path = read_string(r, "modelPath");
    out.context_tokens = read_int32(r, "contextTokens");
    out.threads = read_int32(r, "threads");
    out.lanes = read_int32(r, "lanes");
    out.direct_io = read_bool(r, "directIo");
    out.prefill_bytes = uint64_t(read_whole(r, "prefillBytes", 0, 9007199254740991.0));
    if (has_field(r, "promptBytes")) out.prompt_bytes = uint64_t(read_whole(r, "promptBytes", 0, 9007199254740991.0));
    out.keep_all = read_bool(r, "keepAll");
    if (has_field(r, "readBytesPerSecond")) out.read_bytes_per_second = uint64_t(read_whole(r, "readBytesPerSecond", 0, 9007199254740991.0));
    if (has_field(r, "verify")) out.verify = read_bool(r, "verify");
    out.spec = read_spec(r, "spec");
    return r.status;
}

engine_status to_widen_options(Napi::Env env, const Napi::Value & value, widen_options & out) {
    object_reader r = read_object(env, value, "options");
    out.width = int64_t(read_whole(r, "width", 0, 9007199254740991.0));
    out.expert_bytes = uint64_t(read_whole(r, "expertBytes", 0, 9007199254740991.0));
    out.total_bytes = uint64_t(read_whole(r, "totalBytes", 0, 9007199254740991.0));
    out.replace = read_bool(r, "replace");
    return r.status;
}

engine_status to_quantize_options(Napi::Env env, const Napi::Value & value, quantize_options & out) {
    object_reader r = read_object(env, value, "options");
    out.type = read_string(r, "type");
    out.down_type = read_string(r, "downType");
    out.requantize = read_bool(r, "requantize");
    out.threads = read_int32(r, "threads");
    out.replace = read_bool(r, "replace");
    return r.status;
}

engine_status to_generate_request(Napi::Env env, const Napi::Value & value, generate_request & out) {
    object_reader r = read_object(env, value, "request");
    out.request_id = read_string(r, "requestId");
    out.prompt = read_int32_array(r, "prompt");
    out.max_tokens = read_int32(r, "maxTokens");
    out.temperature = read_number(r, "temperature");
    out.top_p = read_number(r, "topP");
    out.seed = uint64_t(int64_t(read_whole(r, "seed", -9007199254740991.0, 9007199254740991.0)));
    out.cold_cache = read_bool(r, "coldCache");
    out.capture_router = read_bool(r, "captureRouter");
    return r.status;
}

engine_status to_fit_request(Napi::Env env, const Napi::Value & value, fit_request & out) {
    object_reader r = read_object(env, value, "request");
    out.tokens = read_int32_array(r, "tokens");
    out.context = read_int32(r, "context");
    out.held_out_windows = read_int32(r, "heldOutWindows");
    out.capacity = read_int32(r, "capacity");
    return r.status;
}

engine_status to_evaluate_request(Napi::Env env, const Napi::Value & value, evaluate_request & out) {
    object_reader r = read_object(env, value, "request");
    out.tokens = read_int32_array(r, "tokens");
    out.context = read_int32(r, "context");
    if (has_field(r, "promptTokens")) out.prompt_tokens = read_int32(r, "promptTokens");
    out.spec = read_spec(r, "spec");
    out.stepped = read_bool(r, "stepped");
    if (has_field(r, "recordRoutes")) out.record_routes = read_bool(r, "recordRoutes");
    if (has_field(r, "recordScores")) out.record_scores = read_bool(r, "recordScores");
    if (has_field(r, "memoryBytes")) out.memory_bytes = uint64_t(read_whole(r, "memoryBytes", 0, 9007199254740991.0));
    return r.status;
}

// A typed array of one element type; absent: empty.
template <typename T, napi_typedarray_type TYPE> static std::vector<T> read_typed_array(object_reader & r, const char * field, const char * expected) {
    if (!has_field(r, field)) return {};
    const Napi::Value v = field_value(r, field);
    if (!v.IsTypedArray() || v.As<Napi::TypedArray>().TypedArrayType() != TYPE) {
        r.status = bad_argument(r.what, field, expected);
        return {};
    }
    const auto array = v.As<Napi::TypedArrayOf<T>>();
    return std::vector<T>(array.Data(), array.Data() + array.ElementLength());
}

static void read_trace(object_reader & r, route_trace & out) {
    out.experts = read_int32(r, "experts");
    out.top_k = read_int32(r, "topK");
    out.layer_events = read_whole_numbers(r, "layerEvents");
    out.routes = read_typed_array<int32_t, napi_int32_array>(r, "routes", "an Int32Array");
    out.scores = read_typed_array<float, napi_float32_array>(r, "scores", "a Float32Array");
    out.rows = read_typed_array<uint8_t, napi_uint8_array>(r, "rows", "a Uint8Array");
    if (has_field(r, "rowsMask")) out.rows_mask = read_bool(r, "rowsMask");
    const std::vector<int32_t> changes = read_typed_array<int32_t, napi_int32_array>(r, "changes", "an Int32Array");
    if (changes.size() % 3 != 0) r.status = bad_argument(r.what, "changes", "three numbers for each: layer, event, capacity");
    for (size_t i = 0; i + 2 < changes.size(); i += 3) out.changes.push_back({changes[i], changes[i + 1], changes[i + 2]});
}

static std::vector<engine_spec> read_specs(object_reader & r, const char * field) {
    std::vector<engine_spec> out;
    const Napi::Value list = field_value(r, field);
    if (list.IsEmpty()) return out;
    if (!list.IsArray()) r.status = bad_argument(r.what, field, "an array of specs");
    for (uint32_t i = 0; r.status.code == ENGINE_OK && i < list.As<Napi::Array>().Length(); i++) {
        const Napi::Value v = list.As<Napi::Array>().Get(i);
        if (r.env.IsExceptionPending()) r.env.GetAndClearPendingException();
        out.emplace_back();
        r.status = to_spec(r.env, v.IsEmpty() ? r.env.Undefined() : v, out.back());
    }
    return out;
}

engine_status to_curve_request(Napi::Env env, const Napi::Value & value, replay_request & out) {
    object_reader r = read_object(env, value, "request");
    read_trace(r, out.trace);
    if (has_field(r, "uncountedTokens")) out.uncounted = read_int32(r, "uncountedTokens");
    return r.status;
}

engine_status to_replay_request(Napi::Env env, const Napi::Value & value, replay_request & out) {
    const engine_status status = to_curve_request(env, value, out);
    if (status.code != ENGINE_OK) return status;
    object_reader r = read_object(env, value, "request");
    out.what_ifs = read_specs(r, "whatIfs");
    return r.status;
}

engine_status to_messages(Napi::Env env, const Napi::Value & value, std::vector<chat_message> & out) {
    if (!value.IsArray()) return bad_argument("messages", "", "an array");
    const Napi::Array array = value.As<Napi::Array>();
    for (uint32_t i = 0; i < array.Length(); i++) {
        const Napi::Value v = array.Get(i);
        if (env.IsExceptionPending()) env.GetAndClearPendingException();
        object_reader r = read_object(env, v.IsEmpty() ? env.Undefined() : v, "message");
        const std::string role = read_string(r, "role");
        const std::string content = read_string(r, "content");
        if (r.status.code != ENGINE_OK) return r.status;
        out.push_back({role, content});
    }
    return {};
}
