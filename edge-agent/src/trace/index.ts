export { MissAccount } from './miss-account';
export { OtlpExporter, type OtlpExporterOptions } from './otlp-exporter';
export type { SpanOrigin } from './span-factory';
export { TraceRecorder, type TraceRecorderOptions } from './trace-recorder';
export { TraceSpool, type TraceSpoolOptions } from './trace-spool';
