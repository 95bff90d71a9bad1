// Making and testing `engine_status` values. A status carries its text in place, so that making one never allocates.
#pragma once

#include "engine.h"

__attribute__((format(printf, 2, 3))) engine_status status_error(engine_code code, const char * format, ...);

inline bool failed(const engine_status & s) { return s.code != ENGINE_OK; }

int64_t now_ns();  // CLOCK_MONOTONIC
