/** Builds the agent's supervisor from its parts and runs it until a signal. */
import { randomUUID } from 'node:crypto';
import { existsSync } from 'node:fs';
import { freemem, hostname } from 'node:os';
import { join } from 'node:path';
import type { DeviceInfo, ModelFile } from '@moefleet/proto';
import { createLogger, Lifecycle, type Logger, mergeSettings, runUntilSignal, type Service, VERSION } from '@moefleet/runtime';
import { type AgentConfig, readConfig, SETTINGS } from './config';
import { AgentSession } from './control/agent-session';
import { ControlMetrics } from './control/control-metrics';
import { DesiredApplier } from './control/desired-applier';
import { deviceInfo } from './control/device-info';
import { LimitError, type Limits } from './control/effective-spec';
import { DeviceIdentity } from './control/identity';
import { DeviceEnrolment } from './control/identity-enrolment';
import { MeasureTasks } from './control/measure-task';
import { ModelSwitch } from './control/model-switch';
import { MemoryWatch } from './control/memory-watch';
import { defaultLowBytes } from './control/memory-pressure';
import { availableBytes, readMemory } from './control/process-memory';
import { effectiveOf } from './control/reported';
import { RouterWindows } from './control/router-windows';
import { WindowBudget } from './control/window-budget';
import { WindowSpool } from './control/window-spool';
import { WindowUpload } from './control/window-upload';
import { SpecStore } from './control/spec-store';
import { StateFolder } from './control/state-folder';
import { StreamOutbox } from './control/stream-outbox';
import { Telemetry } from './control/telemetry';
import { ExpertUseReports } from './control/expert-use';
import { WarmStart } from './control/warm-start';
import { EngineQueueRunner } from './engine-queue-runner';
import { EngineHostClient } from './host/host-client';
import { checkModelApart } from './host/model-check';
import { AgentHttp, modelIdOf } from './http';
import { ModelFetching } from './models/model-fetching';
import { ModelsFolder } from './models/models-folder';
import { ServiceManager } from './service-manager';
import { AgentUpgrade } from './upgrade/agent-upgrade';
import { BundleKey } from './upgrade/bundle-key';
import { CoordinatorArtifacts } from './upgrade/artifact-source';
import { Slots } from './upgrade/slots';
import { MissAccount, OtlpExporter, TraceRecorder, TraceSpool } from './trace';

export { SETTINGS };

const LAST_GOOD_MODEL = 'last-good-model';
/** Its content, a path, is what SIGHUP loads. */
const NEXT_MODEL = 'model';

/**
 * Runs an agent until SIGINT or SIGTERM. `flags`: by commander's option names. Resolves with the exit code: 0 after a
 * signal, 1 where a part cannot start, 2 where the model does not fit the device's limit. Throws ConfigError.
 */
export async function runAgent(flags: Record<string, unknown>, env: NodeJS.ProcessEnv): Promise<number> {
  // commander gives `--no-direct-io` as directIo: false.
  const given = { ...flags, noDirectIo: flags['directIo'] === false ? true : undefined, noPeers: flags['peers'] === false ? true : undefined };
  const config = readConfig(mergeSettings(SETTINGS, given, env));
  const log = createLogger('agent', config.logLevel).child({ deviceId: config.deviceId });
  const folder = new StateFolder(config.stateFolder);
  try {
    await folder.start();
  } catch (error) {
    log.fatal((error as Error).message);
    return 1;
  }
  try {
    return await runWith(config, folder, env, log);
  } finally {
    await folder.stop();
  }
}

async function runWith(config: AgentConfig, folder: StateFolder, env: NodeJS.ProcessEnv, log: Logger): Promise<number> {
  const bootId = randomUUID();
  const limits: Limits = {
    maxCacheBytes: config.maxCacheBytes ?? Math.floor((availableBytes() || freemem()) / 2),
    maxLambda: config.maxLambda,
    traceRatio: config.traceRatio,
    prefetch: config.prefetch,
  };
  const applier = new DesiredApplier(new SpecStore(folder, log), limits, log);
  applier.restore();

  const modelsFolder = new ModelsFolder(config.modelsFolder);
  const modelPath = startModel(config.modelPath, applier.wantedModel, modelsFolder);
  const hostPath = join(__dirname, 'host', 'host-main.js');
  const refusal = new Refusal();
  const host: EngineHostClient = new EngineHostClient({
    hostPath, env, log, modelPath,
    lastGoodModelPath: modelToGoBackTo(folder.read(LAST_GOOD_MODEL)?.trim(), modelPath, config.modelPath),
    open: {
      contextTokens: config.contextTokens, threads: config.threads, lanes: config.lanes, directIo: config.directIo,
      prefillBytes: config.prefillBytes, keepAll: false, verify: config.verify,
    },
    // A model that the fleet names and that does not fit is not what this agent was started with.
    specFor: (model) => (model.info.path === config.modelPath ? refusal.watch(() => applier.specFor(model)) : applier.specFor(model)),
    memory: config.memoryPressure === 'auto' ? {
      beforeStart: () => memory.beforeStart(),
      beforeOpen: (model) => memory.beforeOpen(model),
      opened: (model, taken) => memory.opened(model, taken),
    } : undefined,
    onModelProven: (path) => {
      try {
        folder.write(LAST_GOOD_MODEL, `${path}\n`);
      } catch (error) {
        log.error({ reason: (error as Error).message }, 'the last good model cannot be stored; after a restart there is none to go back to');
      }
    },
  });
  applier.follow(host);
  host.onStateChange((state) => {
    if (state.t === 'ready') refusal.disarm();
  });

  const warmStart = config.warmStart ? new WarmStart({ host, applier, folder, log, now: () => performance.now() }) : null;
  warmStart?.follow();

  const memory: MemoryWatch = new MemoryWatch({
    host, applier, log, read: readMemory, now: () => performance.now(), scoring: () => tasks.scoring,
    policy: { lowBytes: config.memoryLowBytes ?? defaultLowBytes(readMemory().totalBytes), stallPercent: config.memoryStallPercent },
  });
  host.onServed(() => memory.served());

  const account = new MissAccount();
  const spool = new TraceSpool({ folder: join(config.stateFolder, 'spool'), maxBytes: config.spoolBytes, account, log });
  const exporter = new OtlpExporter({ endpoint: config.otlpEndpoint, spool, log });
  const traces = new TraceRecorder({ origin: { deviceId: config.deviceId, bootId, hostName: hostname(), version: VERSION }, spool, account, log, traceRatio: config.traceRatio });

  const outbox = new StreamOutbox();
  const windowSpool = new WindowSpool(join(config.stateFolder, 'windows'), config.windowSpoolBytes, log);
  const upload = new WindowUpload({
    spool: windowSpool, log,
    post: (body) => {
      outbox.putUpload(body);
      session?.flush();
    },
  });
  const windows = new RouterWindows({
    context: () => {
      const { inForce } = applier;
      const sampling = inForce?.effective.routerSampling;
      if (!inForce || !sampling || host.state.t !== 'ready') return null;
      const { info, hash } = host.state.model;
      return { sampling, modelHash: hash, model: info, spec: () => effectiveOf(inForce), generation: inForce.effective.routing.generation };
    },
    budget: new WindowBudget(folder, log),
    keep: async (window) => {
      await windowSpool.add(window);
      upload.wake();
    },
  });
  const windowCounts = () => ({ sent: upload.counts.sent, dropped: windows.counts.dropped + windowSpool.dropped + upload.counts.refused });
  const queue = new EngineQueueRunner({
    host, recorder: traces, observer: windows, log, maxWaiting: config.maxWaiting,
    modelName: () => (host.state.t === 'ready' ? modelIdOf(host.state.model) : ''),
  });
  const modelSwitch = new ModelSwitch(host, queue, (model) => applier.specFor(model));
  const http: AgentHttp = new AgentHttp({
    ...config.http, apiKey: config.apiKey, engine: host, queue, log,
    metrics: new ControlMetrics({ host, queue, traces, spool, exporter }, {
      inForce: () => applier.inForce,
      connected: () => session?.connected ?? false,
      windows: windowCounts,
      processes: () => [process.pid, host.pid],
      models: () => models.traffic,
      memory,
    }),
    loadModel: (path) => models.keeper.loadOwn(path),
    connected: () => session?.connected ?? false,
  });
  const telemetry = new Telemetry({ host, traces, requests: () => queue.requests, windows: windowCounts, memory });
  const tasks = new MeasureTasks({
    host, queue, log,
    inForce: () => applier.inForce,
    scoringBytes: () => (config.memoryPressure === 'auto' ? memory.scoringBytes() : undefined),
    send: (update) => {
      outbox.putTask(update);
      session?.flush();
    },
  });
  const expertUse = new ExpertUseReports({
    host, log,
    send: (report) => {
      outbox.putExpertUse(report);
      session?.flush();
    },
  });
  const installId = folder.installId();
  const identity = new DeviceIdentity(folder, config.enrolToken, Date.now, log);
  identity.load();
  const models = new ModelFetching({
    config, folder: modelsFolder, identity, host, log,
    load: (path) => modelSwitch.load(path),
    check: (path, signal) => checkModelApart(hostPath, env, path, signal),
    send: (holding) => {
      outbox.putHolding(holding);
      session?.flush();
    },
  });
  applier.keepModels(models.keeper);
  const info = (): DeviceInfo => deviceInfo({ labels: config.labels, limits, httpUrl: http.url, host, modelFetch: models.keeper.fetch, manifestOf: (path) => modelsFolder.idOf(path) });
  const bundleKey = new BundleKey(folder, config.bundleKey, log);
  const enrolment = config.coordinator === null ? null : new DeviceEnrolment({
    identity, bundleKey, coordinator: config.coordinator, deviceId: config.deviceId, installId, log, now: Date.now, random: Math.random, channel: () => session?.channel ?? null,
  });
  const session: AgentSession | null = config.coordinator === null ? null : new AgentSession({
    coordinator: config.coordinator, deviceId: config.deviceId, installId, bootId, security: () => enrolment!.security(), outbox, info, log,
    reported: () => applier.reported,
    telemetry: () => telemetry.take(),
    onDesired: ({ generation, spec, origin }) => applier.receive({ generation, bytes: spec, origin }),
    onTask: ({ taskId, kind }) => {
      if (kind?.$case === 'measure') tasks.begin(taskId, kind.value);
      else outbox.putTask({ taskId, state: { $case: 'failed', value: { reason: `agent ${VERSION} does not know this kind of task; update it` } } });
      session?.flush();
    },
    onCancelTask: (taskId) => tasks.cancel(taskId),
    onWelcome: ({ expertUseIntervalMs, windowChunkBytes, blobPort }) => {
      models.online(blobPort);
      expertUse.setPace(config.warmStart ? expertUseIntervalMs : 0);
      upload.online(windowChunkBytes);
    },
    onWarmList: (list) => warmStart?.receive(list),
    onWindowAck: (ack) => upload.acknowledged(ack),
    onModelPeers: (peers) => models.receivePeers(peers),
    onLost: () => {
      models.offline();
      expertUse.setPace(0);
      upload.offline();
      void tasks.stop();
    },
  });
  const artifacts = config.coordinator === null ? null : new CoordinatorArtifacts(config.coordinator, () => session?.channel ?? null);
  const slots = Slots.of(env);
  const upgrade = new AgentUpgrade({
    slots, source: artifacts, key: bundleKey, arch: process.arch, trialMs: config.trialMs, httpUrl: () => http.url, apiKey: config.apiKey,
    connected: () => session?.connected ?? false, serving: () => host.state.t === 'ready', log,
  });
  applier.keepReleases(upgrade);
  const tellInfo = () => {
    outbox.putInfo(info());
    session?.flush();
  };
  host.onStateChange(tellInfo);
  host.onTrouble(tellInfo);
  models.keeper.onProgress(tellInfo);
  applier.onReport(() => {
    if (applier.inForce) traces.setTraceRatio(applier.inForce.effective.traceRatio);
    // Whoever switches it off wants none of what has been recorded either.
    if (applier.inForce?.effective.routerSampling === null) {
      windowSpool.clear().catch((error: Error) => log.warn({ reason: error.message }, 'router windows that nobody wants any more cannot be removed'));
    }
    outbox.putReported(applier.reported);
    session?.flush();
  });

  const announcement = part('announcement', () => {
    slots?.write('running.json', JSON.stringify({ pid: process.pid, version: VERSION, httpUrl: http.url }));
    log.info({ httpUrl: http.url, coordinator: config.coordinator, bootId, maxCacheBytes: limits.maxCacheBytes, otlpEndpoint: config.otlpEndpoint, stateFolder: config.stateFolder, identity: identity.state.t }, 'listening');
    if (config.otlpEndpoint === null) log.info({ spoolBytes: config.spoolBytes }, 'no collector is set (--otlp-endpoint): spans stay in the spool');
  });
  const tasksPart = part('tasks', () => {}, () => tasks.stop());
  const usePart = part('expert use', () => {}, async () => expertUse.setPace(0));
  const uploadPart = part('window upload', () => {}, async () => {
    await windows.idle();
    upload.offline();
  });
  const fetching = part('artifacts', () => {}, async () => artifacts?.stop());
  const services: Service[] = [windowSpool, host, models.keeper, spool, exporter, uploadPart, queue, http, announcement, tasksPart, usePart, fetching];
  if (config.memoryPressure === 'auto') services.push(memory);
  if (enrolment) services.push(enrolment);
  if (session) services.push(session);
  // Last: systemd holds back what waits for the agent until all of it has started.
  const manager = ServiceManager.of(env, log);
  if (manager) services.push(manager);

  const onHangup = () => {
    let path: string | undefined;
    try {
      path = folder.read(NEXT_MODEL)?.trim();
    } catch (err) {
      return log.error({ err, file: join(config.stateFolder, NEXT_MODEL) }, 'SIGHUP: the file that names the next model cannot be read');
    }
    if (!path) return log.warn({ file: join(config.stateFolder, NEXT_MODEL) }, 'SIGHUP: the file that names the next model is missing or empty');
    log.info({ modelPath: path }, 'SIGHUP: loading another model');
    models.keeper.loadOwn(path).catch((error: Error) => log.error({ modelPath: path, reason: error.message }, 'the model was not loaded'));
  };
  process.on('SIGHUP', onHangup);
  try {
    const code = await runUntilSignal(new Lifecycle(services, log), log, Promise.race([refusal.happened, upgrade.leaving]));
    return refusal.error ? 2 : code;
  } finally {
    process.off('SIGHUP', onHangup);
  }
}

/** What the last good spec names, where it is on the disk: it serves also while the coordinator is away. */
function startModel(own: string, named: ModelFile | undefined, folder: ModelsFolder): string {
  return named && folder.isWhole(named.manifestSha256) ? folder.modelPath(named.manifestSha256) : own;
}

/** Behind what has served last is what the device was set up with; null where it starts with that. */
function modelToGoBackTo(lastGood: string | undefined, start: string, own: string): string | null {
  if (lastGood && lastGood !== start && existsSync(lastGood)) return lastGood;
  return start === own ? null : own;
}

/** Ends the agent where the model it was started with does not fit the limit it was started with. */
class Refusal {
  error: LimitError | null = null;
  private armed = true;
  private refuse: (error: LimitError) => void = () => {};
  readonly happened = new Promise<void>((_, reject) => {
    this.refuse = reject;
  });

  constructor() {
    // Whoever waits for it may come later than the refusal.
    this.happened.catch(() => {});
  }

  /** A model has been loaded: from here on a misfit fails the model, not the agent. */
  disarm(): void {
    this.armed = false;
  }

  watch<T>(work: () => T): T {
    try {
      return work();
    } catch (error) {
      if (this.armed && error instanceof LimitError) {
        this.error = error;
        this.refuse(error);
      }
      throw error;
    }
  }
}

function part(name: string, start: () => void, stop: () => Promise<void> = async () => {}): Service {
  return { name, start: async () => start(), stop };
}
