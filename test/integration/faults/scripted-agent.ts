/**
 * An agent as a process of its own, so that it can be killed and stopped: session, applier, store and outbox are the
 * true ones, the engine does what it is told. At each step of an apply it stops while the file `hold-<step>` lies in
 * its control folder, and says that it is there. All it has done lies in a journal, which outlives it.
 */
import { appendFileSync, existsSync } from 'node:fs';
import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { DeviceSpec, MeasureResult, SpecState, type Task, TelemetryFrame } from '@moefleet/proto';
import { createLogger } from '@moefleet/runtime';
import { AgentSession } from '../../../edge-agent/src/control/agent-session';
import { DesiredApplier } from '../../../edge-agent/src/control/desired-applier';
import { deviceInfo } from '../../../edge-agent/src/control/device-info';
import { SpecStore, type StoredSpecs } from '../../../edge-agent/src/control/spec-store';
import { StateFolder } from '../../../edge-agent/src/control/state-folder';
import { StreamOutbox } from '../../../edge-agent/src/control/stream-outbox';
import type { RoutingSpec } from '../../../edge-agent/src/native';
import { FaultyEngine } from '../desired-protocol/faulty-engine';
import { type AgentStep, type AgentTold, BAD_LAMBDA, JOURNAL, type JournalEntry, type ScriptedAgentOptions, STATE } from './agent-journal';

const { id, coordinator, folder } = JSON.parse(process.argv[2]!) as ScriptedAgentOptions;
const log = createLogger('agent', process.env['MOEFLEET_TEST_LOG'] ?? 'silent');
const bootId = randomUUID();
/** Notices a dead peer within a second. */
const KEEPALIVE = { timeMs: 500, timeoutMs: 500 };
const LIMITS = { maxCacheBytes: 1024 ** 3, maxLambda: 1, traceRatio: 1 };
const LOOK_EVERY_MS = 5;

const journal = (entry: JournalEntry) => appendFileSync(join(folder, JOURNAL), `${JSON.stringify(entry)}\n`);
const held = (step: AgentStep) => existsSync(join(folder, `hold-${step}`));
const tell = (at: AgentStep, lambda: number) => { if (process.connected) process.send!({ at, lambda } satisfies AgentTold); };

async function pass(step: AgentStep, lambda: number): Promise<void> {
  tell(step, lambda);
  while (held(step)) await sleep(LOOK_EVERY_MS);
}

class HeldEngine extends FaultyEngine {
  override async apply(spec: RoutingSpec): Promise<void> {
    if ((spec.generation ?? 0) > 0) await pass('applying', spec.lambda);
    journal({ t: 'ran', bootId, generation: spec.generation ?? 0, lambda: spec.lambda });
    await super.apply(spec);
  }
}

class HeldStore extends SpecStore {
  override save(specs: StoredSpecs): void {
    super.save(specs);
    const { current } = specs;
    if (!current) return;
    const lambda = DeviceSpec.decode(current.bytes).lambda ?? 0;
    journal({ t: 'persisted', bootId, generation: Number(current.generation), lambda });
    tell('persisted', lambda);
    // Nothing of this process goes on: between the disk and the report there is no turn of the event loop.
    while (held('persisted')) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, LOOK_EVERY_MS);
  }
}

const state = new StateFolder(join(folder, STATE));
const applier = new DesiredApplier(new HeldStore(state, log), LIMITS, log);
const engine = new HeldEngine();
const outbox = new StreamOutbox();
let tokens = 0n;
let sequence = 0n;
/** Desired specs in the order in which they came. */
let receiving: Promise<void> = Promise.resolve();

function telemetry(): TelemetryFrame {
  sequence += 1n;
  tokens += 3n;
  journal({ t: 'counted', bootId, tokens: Number(tokens) });
  return TelemetryFrame.fromPartial({ sequence, timeMs: BigInt(Date.now()), hostStarts: 1, decodeTokens: tokens });
}

/** λ 0 costs 3 nats a token; a good λ a thousandth of a nat more, a bad one a third. */
async function measure({ taskId }: Task): Promise<void> {
  const { inForce } = applier;
  const lambda = inForce?.effective.routing.lambda ?? 0;
  await pass('measuring', lambda);
  const loss = lambda >= BAD_LAMBDA ? 0.3 : 0.001;
  const windows = [1, 2, 3, 4, 5, 6, 7, 8].map((at) => at * 1e-5);
  outbox.putTask({ taskId, state: { $case: 'measured', value: MeasureResult.fromPartial({
    generation: inForce?.record.generation ?? 0n, windowCrossEntropy: windows.map((each) => 3 + loss + each), windowCrossEntropyLambdaZero: windows.map(() => 3), textTokens: 2048, textMissRate: 0.1,
  }) } });
  session.flush();
}

const session: AgentSession = new AgentSession({
  coordinator, deviceId: id, installId: state.installId(), bootId, outbox, log, keepalive: KEEPALIVE,
  // No growing waits: one test follows another.
  random: () => 0,
  info: () => deviceInfo({ labels: {}, limits: LIMITS, httpUrl: '', host: { state: engine.state, crashes: 0, lastTrouble: '' }, modelFetch: undefined, manifestOf: () => null }),
  reported: () => applier.reported,
  telemetry: async () => telemetry(),
  onDesired: ({ generation, spec, origin }) => {
    const lambda = DeviceSpec.decode(spec).lambda ?? 0;
    journal({ t: 'received', bootId, generation: Number(generation), lambda });
    receiving = receiving.then(async () => {
      await pass('received', lambda);
      applier.receive({ generation, bytes: spec, origin });
    });
  },
  onTask: (task) => void measure(task),
  onCancelTask: () => {},
  onLost: () => {},
});

applier.onReport(() => {
  const { reported, inForce } = applier;
  outbox.putReported(reported);
  session.flush();
  if (reported.state === SpecState.SPEC_STATE_APPLIED && session.connected) tell('reported', inForce?.effective.routing.lambda ?? 0);
});

async function main(): Promise<void> {
  await state.start();
  journal({ t: 'boot', bootId });
  applier.restore();
  applier.follow(engine.client);
  engine.start();
  await session.start();
  const stop = async () => {
    await session.stop();
    await state.stop();
    process.exit(0);
  };
  process.on('SIGTERM', () => void stop());
  // The test has gone.
  process.on('disconnect', () => void stop());
}

void main();
