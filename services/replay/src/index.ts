/** Replay of recorded runs, for programs of this repository. */
export { type Band, type Calibration, errorBand } from './error-band';
export { effectiveSpecOf, recordedWhatIf } from './recorded-spec';
export { type Rates, replay, type ReplayOptions, type ReplayRow } from './replay';
export { replaySvg } from './replay-svg';
export { formatRoutes, parseRoutes, type RecordedRoutes } from './route-file';
export { plot, type PlotOptions, type Series, ticks } from './svg-plot';
export { costOfCounters, type TokenCost, tokensPerSecond } from './speed';
export { readTrace, type Trace, traceOfRoutes, traceOfWindows } from './trace';
export { TraceError } from './trace-error';
export { bendsNothing, type Grid, type Policy, POLICIES, type ReplayRouting, ROUTINGS, type Setting, settingsOf, whatIfOf } from './what-if';
export { formatWindows, isWindowFile, readWindowFile } from './window-file';
