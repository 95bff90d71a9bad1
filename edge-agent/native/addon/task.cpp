#include "task.h"

#include <mutex>
#include <set>

namespace {

// Process-wide; never destroyed, so that it outlives whatever still uses it while the process exits.
struct task_registry {
    std::mutex mutex;
    std::set<task *> tasks;
};
task_registry & registry() {
    static task_registry * r = new task_registry;
    return *r;
}

// Cancels and waits; afterwards nothing of the task runs on another thread.
void end_task(task & t) {
    t.cancelled.store(true);
    if (t.cancel) t.cancel();
    if (t.thread.joinable()) t.thread.join();
}

// Those of one environment: a worker's exit is no business of the others.
void end_all_tasks(napi_env env) {
    std::lock_guard<std::mutex> lock(registry().mutex);
    for (task * t : registry().tasks) {
        if (t->env == env) end_task(*t);
    }
}

void forget_task(task & t) {
    std::lock_guard<std::mutex> lock(registry().mutex);
    registry().tasks.erase(&t);
}

using message = std::function<void(Napi::Env, task &)>;

// Runs before the thread-safe function is torn down (hooks run last in, first out), so that the thread is gone by then.
void on_environment_exit(void * data) {
    task & t = *static_cast<task *>(data);
    end_task(t);
    forget_task(t);
}

void settle(Napi::Env env, task & t) {
    napi_remove_env_cleanup_hook(env, on_environment_exit, &t);
    forget_task(t);
    if (t.thread.joinable()) t.thread.join();
    if (!t.callback_error.IsEmpty()) napi_reject_deferred(env, t.deferred, t.callback_error.Value());
    else if (t.status.code != ENGINE_OK) napi_reject_deferred(env, t.deferred, from_status(env, t.status));
    else napi_resolve_deferred(env, t.deferred, t.result(env));
    napi_release_threadsafe_function(t.messages, napi_tsfn_release);
}

void on_message(napi_env env, napi_value, void * context, void * data) {
    std::unique_ptr<message> m(static_cast<message *>(data));
    if (env == nullptr) return;
    Napi::HandleScope scope(env);
    (*m)(Napi::Env(env), *static_cast<task *>(context));
}

void on_finalize(napi_env, void * data, void *) { delete static_cast<task *>(data); }

void send(task & t, message m) {
    auto * heap = new message(std::move(m));
    if (napi_call_threadsafe_function(t.messages, heap, napi_tsfn_nonblocking) != napi_ok) delete heap;
}

void call_back(Napi::Env env, task & t, const std::vector<napi_value> & arguments) {
    if (t.callback.IsEmpty() || !t.callback_error.IsEmpty()) return;
    t.callback.Call(arguments);
    if (!env.IsExceptionPending()) return;
    // A callback that throws ends the request, and the promise carries what it threw.
    t.callback_error = Napi::Reference<Napi::Value>::New(env.GetAndClearPendingException().Value(), 1);
    t.cancelled.store(true);
    if (t.cancel) t.cancel();
}

}  // namespace

Napi::Value rejected(Napi::Env env, const engine_status & status) {
    const Napi::Promise::Deferred deferred = Napi::Promise::Deferred::New(env);
    deferred.Reject(from_status(env, status));
    return deferred.Promise();
}

void task_send(task & t, std::function<std::vector<napi_value>(Napi::Env)> make) {
    send(t, [make = std::move(make)](Napi::Env env, task & self) { call_back(env, self, make(env)); });
}

void tasks_end_at_exit(Napi::Env env) {
    const Napi::Value process = env.Global().Get("process");
    if (!process.IsObject()) return;
    const Napi::Value once = process.As<Napi::Object>().Get("once");
    if (!once.IsFunction()) return;
    const Napi::Function listener = Napi::Function::New(env, [](const Napi::CallbackInfo & info) { end_all_tasks(info.Env()); });
    once.As<Napi::Function>().Call(process, {Napi::String::New(env, "exit"), listener});
}

static engine_status no_thread(const char * what) {
    engine_status s;
    s.code = ENGINE_INTERNAL;
    snprintf(s.message, sizeof(s.message), "no thread for the engine's work: %s", what);
    return s;
}

Napi::Value task_start(Napi::Env env, std::unique_ptr<task> owned, const Napi::Value & callback) {
    task * t = owned.get();
    t->env = env;
    napi_value promise = nullptr, name = Napi::String::New(env, "moefleet engine");
    if (callback.IsFunction()) t->callback = Napi::Persistent(callback.As<Napi::Function>());
    napi_create_promise(env, &t->deferred, &promise);
    if (napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, t, on_finalize, t, on_message, &t->messages) != napi_ok) {
        if (t->abandon) t->abandon();
        napi_reject_deferred(env, t->deferred, from_status(env, no_thread("the environment is going down")));
        return Napi::Value(env, promise);
    }
    owned.release();  // freed by on_finalize
    napi_add_env_cleanup_hook(env, on_environment_exit, t);
    {
        std::lock_guard<std::mutex> lock(registry().mutex);
        registry().tasks.insert(t);
    }
    try {
        t->thread = std::thread([t] {
            t->status = t->work(*t);
            send(*t, settle);
        });
    } catch (const std::exception & error) {
        if (t->abandon) t->abandon();
        t->status = no_thread(error.what());
        send(*t, settle);
    }
    return Napi::Value(env, promise);
}
