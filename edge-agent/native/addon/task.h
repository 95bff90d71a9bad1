// Long work: a promise settled by a thread of its own. Messages to JavaScript (steps, progress) go through a
// thread-safe function and never block the sender; the last message settles the promise, so it comes after all others.
#pragma once

#include "js-values.h"

#include <atomic>
#include <functional>
#include <memory>
#include <thread>

struct task {
    std::function<engine_status(task &)> work;        // on the task's thread
    std::function<Napi::Value(Napi::Env)> result;     // on the JavaScript thread, after work succeeded
    std::function<void()> cancel;                     // any thread; called when the process is about to go
    std::function<void()> abandon;                    // instead of work, where no thread could be started
    std::atomic<bool> cancelled{false};
    engine_status status;
    napi_env env = nullptr;
    std::thread thread;
    Napi::FunctionReference callback;                 // onStep or onProgress
    Napi::Reference<Napi::Value> callback_error;      // what it threw, if it threw
    napi_threadsafe_function messages = nullptr;
    napi_deferred deferred = nullptr;
};

// Ends all tasks on the `exit` event of `process`: process.exit() runs no clean-up hooks of the environment, and the
// destructors of llama.cpp's libraries must not run under a thread that computes.
void tasks_end_at_exit(Napi::Env env);

// `callback` may be undefined. Returns the promise.
Napi::Value task_start(Napi::Env env, std::unique_ptr<task> t, const Napi::Value & callback);

// From the task's thread: calls the callback with what `make` gives, on the JavaScript thread, in order.
void task_send(task & t, std::function<std::vector<napi_value>(Napi::Env)> make);

Napi::Value rejected(Napi::Env env, const engine_status & status);
