/** Replay of recorded runs, for programs of this repository. */
export { effectiveSpecOf } from './recorded-spec';
export { type Rates, replay, type ReplayOptions, type ReplayRow } from './replay';
export { replaySvg } from './replay-svg';
export { formatRoutes } from './route-file';
export { plot, type PlotOptions, type Series, ticks } from './svg-plot';
export { costOfCounters, type TokenCost } from './speed';
export { readTrace, type Trace, traceOfRoutes, traceOfWindows } from './trace';
export { TraceError } from './trace-error';
export { type Grid, type Policy, POLICIES, type ReplayRouting, ROUTINGS, type Setting, settingsOf } from './what-if';
export { formatWindows } from './window-file';
