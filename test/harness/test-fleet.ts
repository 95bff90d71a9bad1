/** A real fleet for one test file: every program its own process, a folder that is removed at the end. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { readOperatorToken } from '@moefleet/runtime';
import { deviceJson } from '../../services/cli/src/device-view';
import { readOperatorChannel } from '../../services/cli/src/operator-channel';
import { OperatorConnection } from '../../services/cli/src/operator-connection';
import { moefleet } from '../../services/demo/src/command-line';
import { findJaeger } from '../../services/demo/src/jaeger-binary';
import { LocalFleet, type RunningAgent } from '../../services/demo/src/local-fleet';
import { MODEL } from './paths';
import { until } from './ports';

export interface DeviceJson {
  id: string;
  online: boolean;
  drift: boolean;
  desiredGeneration: number;
  reported: {
    appliedGeneration: number; reason: string;
    effective: { lambda: number; lambdas: number[]; routing: string | null; eviction: string | null; capacities: number[]; cacheBytes: number };
    adjustments: { field: string; asked: string; effective: string; reason: string }[];
  } | null;
  info: { model: { status: string; message: string; hostCrashes: number } } | null;
  telemetry: { misses: { counted: number; exported: number; spooled: number; dropped: number; unsampled: number }; cacheShrinks: number; cacheLimitBytes: number | null; pressureEvictions: number } | null;
}

export class TestFleet {
  readonly folder = mkdtempSync(join(tmpdir(), 'moefleet-system-'));
  readonly fleet: LocalFleet;

  /** `env`: more environment for every program */
  constructor(env: Record<string, string> = {}) {
    this.fleet = new LocalFleet({ folder: this.folder, keep: false, logLevel: 'info', env });
  }

  /** Redis and a coordinator; `jaeger` only fixes the ports where it will run. */
  async start(options: { jaeger?: boolean } = {}): Promise<this> {
    if (options.jaeger) await this.fleet.reserveJaeger();
    await this.fleet.startRedis();
    await this.fleet.startCoordinator();
    return this;
  }

  async agent(id: string, options: { maxCache?: string; labels?: string; flags?: string[]; model?: string } = {}): Promise<RunningAgent> {
    const agent = await this.fleet.startAgent({
      id, model: options.model ?? MODEL, maxCache: options.maxCache ?? '7.2MiB', labels: options.labels,
      // Tests of anything else shall not depend on what else the machine does.
      flags: ['--memory-pressure', 'off', ...options.flags ?? []],
    });
    await until(`${id} is healthy`, async () => (await fetch(`${agent.httpUrl}/healthz`)).ok);
    return agent;
  }

  cli<T>(...args: string[]): Promise<T> {
    return moefleet<T>(args, { operator: this.fleet.operator });
  }

  async device(id: string): Promise<DeviceJson> {
    return this.look(async (operator) => deviceJson(await operator.getDevice(id)) as unknown as DeviceJson);
  }

  async online(...ids: string[]): Promise<void> {
    await until(`${ids.join(', ')} online`, async () => {
      const devices = await this.look((operator) => operator.listDevices());
      return ids.every((id) => devices.some((device) => device.id === id && device.online));
    });
  }

  /** As the command line asks and shows, without the start of a process: who waits looks again and again, and takes a core with it. */
  private async look<T>(ask: (operator: OperatorConnection) => Promise<T>): Promise<T> {
    const { MOEFLEET_CA: ca = '', MOEFLEET_TOKEN_FILE: tokenFile } = process.env;
    const operator = new OperatorConnection(this.fleet.operator, new AbortController().signal, readOperatorChannel(ca, readOperatorToken(tokenFile, {})));
    try {
      return await ask(operator);
    } finally {
      operator.close();
    }
  }

  async stop(): Promise<void> {
    await this.fleet.stop();
    rmSync(this.folder, { recursive: true, force: true });
  }
}

export interface Completion {
  text: string;
  requestId: string;
  misses: number;
  traceIds: string[];
  completionTokens: number;
  finishReason: string;
}

/** A completion at temperature 0 through the agent's HTTP API. */
export async function complete(httpUrl: string, options: { prompt?: string; tokens: number; cold?: boolean }): Promise<Completion> {
  const response = await fetch(`${httpUrl}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({
      model: 'default', prompt: options.prompt ?? 'The river rises in the hills and', max_tokens: options.tokens, temperature: 0,
      moefleet: { cold_cache: options.cold ?? false },
    }),
  });
  const text = await response.text();
  if (!response.ok) throw new Error(`HTTP ${response.status}: ${text}`);
  const body = JSON.parse(text) as {
    choices: { text: string; finish_reason: string }[]; usage: { completion_tokens: number };
    moefleet: { request_id: string; misses: number; trace_ids: string[] };
  };
  return {
    text: body.choices[0]!.text, finishReason: body.choices[0]!.finish_reason, completionTokens: body.usage.completion_tokens,
    requestId: body.moefleet.request_id, misses: body.moefleet.misses, traceIds: body.moefleet.trace_ids,
  };
}

/** Jaeger's binary, or null after saying loudly that what needs it is skipped. `JAEGER_URL` is for the demo only. */
export function jaegerOrSkip(): string | null {
  const binary = findJaeger();
  if (!binary) process.stderr.write('\nJAEGER IS MISSING: tests of traces are SKIPPED; run ./dev jaeger to build it\n');
  return binary;
}
