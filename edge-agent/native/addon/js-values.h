// Values from and to JavaScript. What comes from JavaScript is checked here, field by field; a wrong value becomes a
// BAD_ARGUMENT that names it, never a crash.
#pragma once

#include "engine.h"

#include <napi.h>

// In the order of the enums.
inline constexpr const char * ROUTING_NAMES[] = {"original", "cache_prior", "max_rank", "cumulative_threshold", "pruned", "sensitivity"};
inline constexpr const char * PREFETCH_NAMES[] = {"auto", "off", "on"};
inline constexpr const char * EVICTION_NAMES[] = {"lru", "lfu", "lfru", "adaptive", "belady"};

// Reads fields of one object; after the first wrong one `status` is set and the rest answer with defaults.
struct object_reader {
    Napi::Env env;
    Napi::Value value;
    const char * what;          // for messages: "options", "request"
    engine_status status;
};

object_reader read_object(Napi::Env env, const Napi::Value & value, const char * what);
double read_number(object_reader & r, const char * field);
int32_t read_int32(object_reader & r, const char * field);
bool read_bool(object_reader & r, const char * field);
std::string read_string(object_reader & r, const char * field);
std::vector<int32_t> read_int32_array(object_reader & r, const char * field);
engine_spec read_spec(object_reader & r, const char * field);

engine_status to_spec(Napi::Env env, const Napi::Value & value, engine_spec & out);
engine_status to_string(const Napi::Value & value, const char * what, std::string & out);
engine_status to_capacities(Napi::Env env, const Napi::Value & value, std::vector<int32_t> & out);
engine_status to_ranked(Napi::Env env, const Napi::Value & value, std::vector<std::vector<int32_t>> & out);
engine_status to_tokens(const Napi::Value & value, const char * what, std::vector<int32_t> & out);
engine_status to_open_options(Napi::Env env, const Napi::Value & value, engine_open_options & out);
engine_status to_widen_options(Napi::Env env, const Napi::Value & value, widen_options & out);
engine_status to_quantize_options(Napi::Env env, const Napi::Value & value, quantize_options & out);
engine_status to_generate_request(Napi::Env env, const Napi::Value & value, generate_request & out);
engine_status to_evaluate_request(Napi::Env env, const Napi::Value & value, evaluate_request & out);
engine_status to_fit_request(Napi::Env env, const Napi::Value & value, fit_request & out);
engine_status to_replay_request(Napi::Env env, const Napi::Value & value, replay_request & out);
engine_status to_curve_request(Napi::Env env, const Napi::Value & value, replay_request & out);  // without what-ifs
engine_status to_messages(Napi::Env env, const Napi::Value & value, std::vector<chat_message> & out);

Napi::Value from_status(Napi::Env env, const engine_status & status);  // an Error with `code`
Napi::Value from_write_result(Napi::Env env, const write_result & r);
Napi::Value from_widen_result(Napi::Env env, const widen_result & r);
Napi::Value from_quantize_result(Napi::Env env, const quantize_result & r);
Napi::Value from_check_result(Napi::Env env, const check_result & r);
Napi::Value from_info(Napi::Env env, const model_info & info);
Napi::Value from_spec(Napi::Env env, const engine_spec & spec);
Napi::Value from_memory(Napi::Env env, const engine_memory & memory);
Napi::Value from_generate_result(Napi::Env env, const generate_result & r);
Napi::Value from_evaluate_result(Napi::Env env, const evaluate_result & r);
Napi::Value from_fit_result(Napi::Env env, const fit_result & r);
Napi::Value from_replay_result(Napi::Env env, const replay_result & r);
Napi::Value from_lru_curve(Napi::Env env, const lru_curve & r);
Napi::Value from_warm_result(Napi::Env env, const warm_result & r);
Napi::Value from_expert_use(Napi::Env env, const expert_use_counts & c);
Napi::Value from_counters(Napi::Env env, const engine_counters & c);
Napi::Value from_tokens(Napi::Env env, const std::vector<int32_t> & tokens);
Napi::Value from_bytes(Napi::Env env, const void * data, size_t n);

// A step with its own copy of everything, so that it can cross threads.
struct step_copy {
    engine_step step;
    std::string text;
    std::vector<double> events;         // n x MISS_EVENT_FIELDS
    std::vector<float> router_logits;   // empty: null
};
step_copy copy_step(const engine_step & step, size_t router_floats);
Napi::Value from_step(Napi::Env env, const step_copy & copy);
