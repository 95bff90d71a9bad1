// The native half of native.ts: the same functions in the same order. Values are converted and checked in
// values-from-js and values-to-js, long work runs as a task; nothing here knows how the engine works.
#include "task.h"

#include <set>

namespace {

// Shared by the JavaScript handle and the tasks that use the engine; the last of them frees it.
struct engine_box {
    engine * e = nullptr;
    ~engine_box() { engine_free(e); }
};
using box_ptr = std::shared_ptr<engine_box>;

// Which externals are engines of this addon instance. Shared with the finalizers, which may run after instance data
// has gone.
using handle_set = std::shared_ptr<std::set<const void *>>;

struct addon_data {
    handle_set handles = std::make_shared<std::set<const void *>>();
};

engine_status handle_status() {
    engine_status s;
    s.code = ENGINE_BAD_ARGUMENT;
    snprintf(s.message, sizeof(s.message), "engine: expected a handle from open()");
    return s;
}

// Null where the value is no handle of ours.
box_ptr box_of(const Napi::CallbackInfo & info) {
    if (!info[0].IsExternal()) return nullptr;
    auto * box = info[0].As<Napi::External<box_ptr>>().Data();
    return info.Env().GetInstanceData<addon_data>()->handles->count(box) ? *box : nullptr;
}

Napi::Value thrown(Napi::Env env, const engine_status & status) {
    napi_throw(env, from_status(env, status));
    return env.Undefined();
}

bool failed(const engine_status & s) { return s.code != ENGINE_OK; }

std::unique_ptr<task> new_task(std::function<engine_status(task &)> work, std::function<Napi::Value(Napi::Env)> result) {
    std::unique_ptr<task> t(new task);
    t->work = std::move(work);
    t->result = std::move(result);
    return t;
}

Napi::Value undefined_result(Napi::Env env) { return env.Undefined(); }

progress_callback report_to(task & t) {
    return [&t](int64_t done, int64_t total) {
        task_send(t, [done, total](Napi::Env env) {
            return std::vector<napi_value>{Napi::Number::New(env, double(done)), Napi::Number::New(env, double(total))};
        });
        return !t.cancelled.load();
    };
}

Napi::Value version(const Napi::CallbackInfo & info) {
    std::string text;
    const engine_status status = engine_version(text);
    return failed(status) ? thrown(info.Env(), status) : Napi::String::New(info.Env(), text).As<Napi::Value>();
}

Napi::Value inspect(const Napi::CallbackInfo & info) {
    std::string path;
    const engine_status status = to_string(info[0], "modelPath", path);
    if (failed(status)) return rejected(info.Env(), status);
    auto out = std::make_shared<model_info>();
    return task_start(info.Env(), new_task([path, out](task &) { return engine_inspect(path, *out); },
                                           [out](Napi::Env env) { return from_info(env, *out); }), info.Env().Undefined());
}

// A status and two paths in front of a callback: what the functions that write a file begin with.
engine_status to_paths(const Napi::CallbackInfo & info, std::string & source, std::string & target) {
    const engine_status status = to_string(info[0], "source", source);
    return failed(status) ? status : to_string(info[1], "target", target);
}

Napi::Value pack(const Napi::CallbackInfo & info) {
    std::string source, target;
    const engine_status status = to_paths(info, source, target);
    if (failed(status)) return rejected(info.Env(), status);
    const bool replace = info[2].ToBoolean();
    auto out = std::make_shared<write_result>();
    const auto work = [source, target, replace, out](task & t) { return engine_pack(source, target, replace, report_to(t), *out); };
    return task_start(info.Env(), new_task(work, [out](Napi::Env env) { return from_write_result(env, *out); }), info[3]);
}

Napi::Value check(const Napi::CallbackInfo & info) {
    std::string path;
    const engine_status status = to_string(info[0], "modelPath", path);
    if (failed(status)) return rejected(info.Env(), status);
    auto out = std::make_shared<check_result>();
    const auto work = [path, out](task & t) { return engine_check(path, report_to(t), *out); };
    return task_start(info.Env(), new_task(work, [out](Napi::Env env) { return from_check_result(env, *out); }), info[1]);
}

Napi::Value widen(const Napi::CallbackInfo & info) {
    std::string source, target;
    widen_options options;
    engine_status status = to_paths(info, source, target);
    if (!failed(status)) status = to_widen_options(info.Env(), info[2], options);
    if (failed(status)) return rejected(info.Env(), status);
    auto out = std::make_shared<widen_result>();
    const auto work = [source, target, options, out](task & t) { return engine_widen(source, target, options, report_to(t), *out); };
    return task_start(info.Env(), new_task(work, [out](Napi::Env env) { return from_widen_result(env, *out); }), info[3]);
}

Napi::Value replay(const Napi::CallbackInfo & info) {
    auto request = std::make_shared<replay_request>();
    auto result = std::make_shared<replay_result>();
    const engine_status status = to_replay_request(info.Env(), info[0], *request);
    if (failed(status)) return rejected(info.Env(), status);
    const auto work = [request, result](task & t) { return engine_replay(*request, report_to(t), *result); };
    return task_start(info.Env(), new_task(work, [result](Napi::Env env) { return from_replay_result(env, *result); }), info[1]);
}

Napi::Value lru_curve_of(const Napi::CallbackInfo & info) {
    auto request = std::make_shared<replay_request>();
    auto result = std::make_shared<lru_curve>();
    const engine_status status = to_curve_request(info.Env(), info[0], *request);
    if (failed(status)) return rejected(info.Env(), status);
    return task_start(info.Env(), new_task([request, result](task &) { return engine_lru_curve(request->trace, request->uncounted, *result); },
                                           [result](Napi::Env env) { return from_lru_curve(env, *result); }), info.Env().Undefined());
}

Napi::Value quantize(const Napi::CallbackInfo & info) {
    std::string source, target;
    quantize_options options;
    engine_status status = to_paths(info, source, target);
    if (!failed(status)) status = to_quantize_options(info.Env(), info[2], options);
    if (failed(status)) return rejected(info.Env(), status);
    auto out = std::make_shared<quantize_result>();
    const auto work = [source, target, options, out](task & t) { return engine_quantize(source, target, options, report_to(t), *out); };
    return task_start(info.Env(), new_task(work, [out](Napi::Env env) { return from_quantize_result(env, *out); }), info[3]);
}

Napi::Value make_handle(Napi::Env env, const box_ptr & box) {
    auto * held = new box_ptr(box);
    const handle_set handles = env.GetInstanceData<addon_data>()->handles;
    handles->insert(held);
    return Napi::External<box_ptr>::New(env, held, [handles](Napi::Env, box_ptr * p) {
        handles->erase(p);
        delete p;
    });
}

Napi::Value open(const Napi::CallbackInfo & info) {
    engine_open_options options;
    const engine_status status = to_open_options(info.Env(), info[0], options);
    if (failed(status)) return rejected(info.Env(), status);
    auto box = std::make_shared<engine_box>();
    const auto work = [options, box](task & t) {
        return engine_open(options, [](void * flag) { return static_cast<std::atomic<bool> *>(flag)->load(); }, &t.cancelled, box->e);
    };
    return task_start(info.Env(), new_task(work, [box](Napi::Env env) { return make_handle(env, box); }), info.Env().Undefined());
}

Napi::Value get_info(const Napi::CallbackInfo & info) {
    const box_ptr box = box_of(info);
    model_info out;
    const engine_status status = box ? engine_get_info(box->e, out) : handle_status();
    return failed(status) ? thrown(info.Env(), status) : from_info(info.Env(), out);
}

Napi::Value memory(const Napi::CallbackInfo & info) {
    const box_ptr box = box_of(info);
    engine_memory out{};
    const engine_status status = box ? engine_get_memory(box->e, out) : handle_status();
    return failed(status) ? thrown(info.Env(), status) : from_memory(info.Env(), out);
}

Napi::Value apply(const Napi::CallbackInfo & info) {
    const box_ptr box = box_of(info);
    engine_spec spec;
    const engine_status status = box ? to_spec(info.Env(), info[1], spec) : handle_status();
    if (failed(status)) return rejected(info.Env(), status);
    std::unique_ptr<task> t = new_task([box, spec](task &) { return engine_apply(box->e, spec); }, undefined_result);
    // At exit the running request is cancelled by its own task; closing frees whoever waits for a boundary.
    t->cancel = [box] { engine_close(box->e); };
    return task_start(info.Env(), std::move(t), info.Env().Undefined());
}

Napi::Value shrink(const Napi::CallbackInfo & info) {
    const box_ptr box = box_of(info);
    std::vector<int32_t> capacities;
    const engine_status status = box ? to_capacities(info.Env(), info[1], capacities) : handle_status();
    if (failed(status)) return rejected(info.Env(), status);
    std::unique_ptr<task> t = new_task([box, capacities](task &) { return engine_shrink(box->e, capacities); }, undefined_result);
    t->cancel = [box] { engine_close(box->e); };
    return task_start(info.Env(), std::move(t), info.Env().Undefined());
}

Napi::Value spec(const Napi::CallbackInfo & info) {
    const box_ptr box = box_of(info);
    engine_spec out;
    const engine_status status = box ? engine_get_spec(box->e, out) : handle_status();
    return failed(status) ? thrown(info.Env(), status) : from_spec(info.Env(), out);
}

Napi::Value drop_cache(const Napi::CallbackInfo & info) {
    const box_ptr box = box_of(info);
    if (!box) return rejected(info.Env(), handle_status());
    return task_start(info.Env(), new_task([box](task &) { return engine_drop_cache(box->e); }, undefined_result), info.Env().Undefined());
}

Napi::Value warm(const Napi::CallbackInfo & info) {
    const box_ptr box = box_of(info);
    std::vector<std::vector<int32_t>> ranked;
    const engine_status status = box ? to_ranked(info.Env(), info[1], ranked) : handle_status();
    if (failed(status)) return rejected(info.Env(), status);
    auto out = std::make_shared<warm_result>();
    std::unique_ptr<task> t = new_task([box, ranked, out](task &) { return engine_warm(box->e, ranked, *out); },
                                       [out](Napi::Env env) { return from_warm_result(env, *out); });
    t->cancel = [box] { engine_close(box->e); };
    return task_start(info.Env(), std::move(t), info.Env().Undefined());
}

Napi::Value tokenize(const Napi::CallbackInfo & info) {
    const box_ptr box = box_of(info);
    std::string text;
    std::vector<int32_t> tokens;
    engine_status status = box ? to_string(info[1], "text", text) : handle_status();
    if (!failed(status)) status = engine_tokenize(box->e, text, info[2].ToBoolean().Value(), info[3].ToBoolean().Value(), tokens);
    return failed(status) ? thrown(info.Env(), status) : from_tokens(info.Env(), tokens);
}

Napi::Value detokenize(const Napi::CallbackInfo & info) {
    const box_ptr box = box_of(info);
    std::string text;
    std::vector<int32_t> tokens;
    engine_status status = box ? to_tokens(info[1], "tokens", tokens) : handle_status();
    if (!failed(status)) status = engine_detokenize(box->e, tokens.data(), tokens.size(), text);
    return failed(status) ? thrown(info.Env(), status) : from_bytes(info.Env(), text.data(), text.size());
}

Napi::Value chat_template(const Napi::CallbackInfo & info) {
    const box_ptr box = box_of(info);
    bool has = false;
    std::string text;
    const engine_status status = box ? engine_chat_template(box->e, has, text) : handle_status();
    if (failed(status)) return thrown(info.Env(), status);
    return has ? Napi::String::New(info.Env(), text).As<Napi::Value>() : info.Env().Null();
}

Napi::Value apply_chat_template(const Napi::CallbackInfo & info) {
    const box_ptr box = box_of(info);
    std::vector<chat_message> messages;
    std::string text;
    engine_status status = box ? to_messages(info.Env(), info[1], messages) : handle_status();
    if (!failed(status)) status = engine_apply_chat_template(box->e, messages, text);
    return failed(status) ? thrown(info.Env(), status) : Napi::String::New(info.Env(), text).As<Napi::Value>();
}

Napi::Value generate(const Napi::CallbackInfo & info) {
    const box_ptr box = box_of(info);
    auto request = std::make_shared<generate_request>();
    auto result = std::make_shared<generate_result>();
    model_info model;
    engine_status status = box ? to_generate_request(info.Env(), info[1], *request) : handle_status();
    if (!failed(status)) status = engine_get_info(box->e, model);
    if (!failed(status)) status = engine_begin(box->e, request->request_id);
    if (failed(status)) return rejected(info.Env(), status);
    request->begun = true;
    const size_t floats = model.moe_layers.size() * size_t(model.experts);
    const auto work = [box, request, result, floats](task & t) {
        const step_callback on_step = [&t, floats](const engine_step & step) {
            auto copy = std::make_shared<step_copy>(copy_step(step, floats));
            task_send(t, [copy](Napi::Env env) { return std::vector<napi_value>{from_step(env, *copy)}; });
        };
        return engine_generate(box->e, *request, on_step, *result);
    };
    std::unique_ptr<task> t = new_task(work, [result](Napi::Env env) { return from_generate_result(env, *result); });
    t->cancel = [box, request] { engine_cancel(box->e, request->request_id); };
    t->abandon = [box] { engine_abandon(box->e); };
    return task_start(info.Env(), std::move(t), info[2]);
}

Napi::Value cancel(const Napi::CallbackInfo & info) {
    const box_ptr box = box_of(info);
    std::string id;
    const engine_status status = box ? to_string(info[1], "requestId", id) : handle_status();
    if (failed(status)) return thrown(info.Env(), status);
    return Napi::Boolean::New(info.Env(), engine_cancel(box->e, id));
}

Napi::Value evaluate(const Napi::CallbackInfo & info) {
    const box_ptr box = box_of(info);
    auto request = std::make_shared<evaluate_request>();
    auto result = std::make_shared<evaluate_result>();
    engine_status status = box ? to_evaluate_request(info.Env(), info[1], *request) : handle_status();
    if (!failed(status)) status = engine_begin(box->e, EVALUATE_REQUEST_ID);
    if (failed(status)) return rejected(info.Env(), status);
    request->begun = true;
    const auto work = [box, request, result](task & t) { return engine_evaluate(box->e, *request, report_to(t), *result); };
    std::unique_ptr<task> t = new_task(work, [result](Napi::Env env) { return from_evaluate_result(env, *result); });
    t->cancel = [box] { engine_cancel(box->e, EVALUATE_REQUEST_ID); };
    t->abandon = [box] { engine_abandon(box->e); };
    return task_start(info.Env(), std::move(t), info[2]);
}

Napi::Value fit_prefetch(const Napi::CallbackInfo & info) {
    const box_ptr box = box_of(info);
    auto request = std::make_shared<fit_request>();
    auto result = std::make_shared<fit_result>();
    engine_status status = box ? to_fit_request(info.Env(), info[1], *request) : handle_status();
    if (!failed(status)) status = engine_begin(box->e, EVALUATE_REQUEST_ID);
    if (failed(status)) return rejected(info.Env(), status);
    request->begun = true;
    const auto work = [box, request, result](task & t) { return engine_fit_prefetch(box->e, *request, report_to(t), *result); };
    std::unique_ptr<task> t = new_task(work, [result](Napi::Env env) { return from_fit_result(env, *result); });
    t->cancel = [box] { engine_cancel(box->e, EVALUATE_REQUEST_ID); };
    t->abandon = [box] { engine_abandon(box->e); };
    return task_start(info.Env(), std::move(t), info[2]);
}

Napi::Value counters(const Napi::CallbackInfo & info) {
    const box_ptr box = box_of(info);
    engine_counters out{};
    const engine_status status = box ? engine_get_counters(box->e, out) : handle_status();
    return failed(status) ? thrown(info.Env(), status) : from_counters(info.Env(), out);
}

Napi::Value get_expert_use(const Napi::CallbackInfo & info) {
    const box_ptr box = box_of(info);
    expert_use_counts out;
    const engine_status status = box ? engine_get_expert_use(box->e, out) : handle_status();
    return failed(status) ? thrown(info.Env(), status) : from_expert_use(info.Env(), out);
}

Napi::Value close_engine(const Napi::CallbackInfo & info) {
    const box_ptr box = box_of(info);
    if (!box) return rejected(info.Env(), handle_status());
    const auto work = [box](task &) {
        engine_close(box->e);
        return engine_status();
    };
    return task_start(info.Env(), new_task(work, undefined_result), info.Env().Undefined());
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
    env.SetInstanceData(new addon_data);
    tasks_end_at_exit(env);
    exports.Set("version", Napi::Function::New(env, version, "version"));
    exports.Set("inspect", Napi::Function::New(env, inspect, "inspect"));
    exports.Set("pack", Napi::Function::New(env, pack, "pack"));
    exports.Set("check", Napi::Function::New(env, check, "check"));
    exports.Set("widen", Napi::Function::New(env, widen, "widen"));
    exports.Set("quantize", Napi::Function::New(env, quantize, "quantize"));
    exports.Set("replay", Napi::Function::New(env, replay, "replay"));
    exports.Set("lruCurve", Napi::Function::New(env, lru_curve_of, "lruCurve"));
    exports.Set("open", Napi::Function::New(env, open, "open"));
    exports.Set("info", Napi::Function::New(env, get_info, "info"));
    exports.Set("memory", Napi::Function::New(env, memory, "memory"));
    exports.Set("apply", Napi::Function::New(env, apply, "apply"));
    exports.Set("shrink", Napi::Function::New(env, shrink, "shrink"));
    exports.Set("spec", Napi::Function::New(env, spec, "spec"));
    exports.Set("dropCache", Napi::Function::New(env, drop_cache, "dropCache"));
    exports.Set("warm", Napi::Function::New(env, warm, "warm"));
    exports.Set("tokenize", Napi::Function::New(env, tokenize, "tokenize"));
    exports.Set("detokenize", Napi::Function::New(env, detokenize, "detokenize"));
    exports.Set("chatTemplate", Napi::Function::New(env, chat_template, "chatTemplate"));
    exports.Set("applyChatTemplate", Napi::Function::New(env, apply_chat_template, "applyChatTemplate"));
    exports.Set("generate", Napi::Function::New(env, generate, "generate"));
    exports.Set("cancel", Napi::Function::New(env, cancel, "cancel"));
    exports.Set("evaluate", Napi::Function::New(env, evaluate, "evaluate"));
    exports.Set("fitPrefetch", Napi::Function::New(env, fit_prefetch, "fitPrefetch"));
    exports.Set("counters", Napi::Function::New(env, counters, "counters"));
    exports.Set("expertUse", Napi::Function::New(env, get_expert_use, "expertUse"));
    exports.Set("close", Napi::Function::New(env, close_engine, "close"));
    return exports;
}

}  // namespace

NODE_API_MODULE(moefleet_engine, init)
