#include "status.h"

#include <cstdarg>
#include <cstdio>
#include <ctime>

engine_status status_error(engine_code code, const char * format, ...) {
    engine_status s;
    s.code = code;
    va_list args;
    va_start(args, format);
    vsnprintf(s.message, sizeof(s.message), format, args);
    va_end(args);
    return s;
}

const char * engine_code_name(engine_code code) {
    switch (code) {
        case ENGINE_OK:           return "OK";
        case ENGINE_MODEL_FORMAT: return "MODEL_FORMAT";
        case ENGINE_NOT_MOE:      return "NOT_MOE";
        case ENGINE_MODEL_CHANGED: return "MODEL_CHANGED";
        case ENGINE_IO:           return "IO";
        case ENGINE_BAD_ARGUMENT: return "BAD_ARGUMENT";
        case ENGINE_CAPACITY:     return "CAPACITY";
        case ENGINE_CONTEXT_FULL: return "CONTEXT_FULL";
        case ENGINE_BUSY:         return "BUSY";
        case ENGINE_CLOSED:       return "CLOSED";
        case ENGINE_CANCELLED:    return "CANCELLED";
        case ENGINE_INTERNAL:     return "INTERNAL";
    }
    return "INTERNAL";
}

int64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
}
