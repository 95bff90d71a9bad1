/** A Jaeger on this machine: all in one, traces in memory, OTLP over HTTP and the query API on ports of its own. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Child } from './child-process';
import { freePort } from './free-port';

export interface JaegerAddresses {
  /** base of the query API and the UI */
  queryUrl: string;
  /** base of OTLP over HTTP */
  otlpUrl: string;
}

export interface JaegerPorts { query: number; queryGrpc: number; otlpHttp: number; health: number; }

export async function freeJaegerPorts(): Promise<JaegerPorts> {
  return { query: await freePort(), queryGrpc: await freePort(), otlpHttp: await freePort(), health: await freePort() };
}

export function jaegerAddresses(ports: JaegerPorts): JaegerAddresses {
  return { queryUrl: `http://127.0.0.1:${ports.query}`, otlpUrl: `http://127.0.0.1:${ports.otlpHttp}` };
}

/** Starts `binary` and waits until it answers; about two seconds. */
export async function startJaeger(binary: string, folder: string, ports: JaegerPorts, keep: boolean): Promise<Child> {
  mkdirSync(folder, { recursive: true });
  const config = join(folder, 'jaeger.json');
  writeFileSync(config, JSON.stringify(configuration(ports), null, 2));
  const child = Child.start({
    name: 'jaeger', command: binary, args: ['--config', `file:${config}`],
    env: { OTEL_TRACES_SAMPLER: 'always_off' }, // its own traces have no collector to go to
    logPath: join(folder, 'jaeger.log'), keep,
  });
  const { queryUrl, otlpUrl } = jaegerAddresses(ports);
  try {
    await child.until('its query API and its OTLP receiver', async () => ((await answers(`${queryUrl}/api/v3/services`)) && (await answers(otlpUrl)) ? true : null), 30_000);
  } catch (error) {
    await child.stop();
    throw error;
  }
  return child;
}

/** Whether anything speaks HTTP there. */
export async function answers(url: string): Promise<boolean> {
  try {
    await (await fetch(url, { signal: AbortSignal.timeout(1000) })).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}

// A collector configuration is YAML, of which JSON is a subset.
function configuration(ports: JaegerPorts): object {
  const at = (port: number) => `127.0.0.1:${port}`;
  return {
    service: {
      extensions: ['jaeger_storage', 'jaeger_query', 'healthcheckv2'],
      pipelines: { traces: { receivers: ['otlp'], processors: ['batch'], exporters: ['jaeger_storage_exporter'] } },
      telemetry: { metrics: { level: 'none' }, logs: { level: 'warn' } },
    },
    extensions: {
      jaeger_storage: { backends: { memory: { memory: { max_traces: 100_000 } } } },
      jaeger_query: { storage: { traces: 'memory' }, http: { endpoint: at(ports.query) }, grpc: { endpoint: at(ports.queryGrpc) } },
      healthcheckv2: { use_v2: true, http: { endpoint: at(ports.health) } },
    },
    receivers: { otlp: { protocols: { http: { endpoint: at(ports.otlpHttp) } } } },
    processors: { batch: { timeout: '200ms' } },
    exporters: { jaeger_storage_exporter: { trace_storage: 'memory' } },
  };
}

/** One span of Jaeger's answer, as far as it matters here. */
export interface QueriedSpan {
  spanId: string;
  traceId: string;
  name: string;
  attributes: Record<string, string>;
}

/**
 * All spans of the given traces (32 hex digits each) through Jaeger's query API. A trace it does not know (yet) has no
 * spans; any other refusal is an error.
 */
export async function queryTraces(queryUrl: string, traceIds: readonly string[]): Promise<QueriedSpan[]> {
  const spans: QueriedSpan[] = [];
  for (const traceId of traceIds) {
    const response = await fetch(`${queryUrl}/api/v3/traces/${traceId}`);
    if (response.status === 404) continue;
    const body = await response.text();
    if (!response.ok) throw new Error(`${queryUrl}: trace ${traceId}: HTTP ${response.status}: ${body.slice(0, 200)}`);
    for (const line of body.split('\n').filter((text) => text.trim())) spans.push(...readSpans(JSON.parse(line)));
  }
  return spans;
}

/** How many different spans of that name there are; an export that was repeated counts once. */
export function countDistinct(spans: readonly QueriedSpan[], name: string): number {
  return new Set(spans.filter((span) => span.name === name).map((span) => `${span.traceId}/${span.spanId}`)).size;
}

interface OtlpJson {
  result?: OtlpJson;
  resourceSpans?: { scopeSpans?: { spans?: OtlpSpan[] }[] }[];
}
interface OtlpSpan {
  traceId: string; spanId: string; name: string;
  attributes?: { key: string; value: Record<string, unknown> }[];
}

function readSpans(answer: OtlpJson): QueriedSpan[] {
  return ((answer.result ?? answer).resourceSpans ?? [])
    .flatMap((resource) => resource.scopeSpans ?? [])
    .flatMap((scope) => scope.spans ?? [])
    .map((span) => ({
      traceId: span.traceId,
      spanId: span.spanId,
      name: span.name,
      attributes: Object.fromEntries((span.attributes ?? []).map(({ key, value }) => [key, String(Object.values(value)[0])])),
    }));
}
