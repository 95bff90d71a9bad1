/** Builds the coordinator from its configuration and runs it. The only place where its objects are made. */
import { setFlagsFromString } from 'node:v8';
import { ConfigError, createLogger, HttpServer, Lifecycle, type Logger, mergeSettings, runUntilSignal, VERSION } from '@moefleet/runtime';
import { ArtifactStore } from './artifacts/artifact-store';
import { BlobStore } from './artifacts/blob-store';
import { ModelStore } from './artifacts/model-store';
import { FolderObjects } from './artifacts/folder-objects';
import { S3Objects } from './artifacts/s3-objects';
import { BlobServer } from './blobs/blob-server';
import { type CoordinatorConfig, readConfig, SETTINGS } from './config';
import { AgentGateway, type GatewayOptions } from './gateway/agent-gateway';
import type { AgentSession } from './gateway/agent-session';
import { ReportBatch } from './gateway/report-batch';
import { TelemetryBatch } from './gateway/telemetry-batch';
import { WindowRoom } from './gateway/window-assembly';
import { readBundleKey } from './identity/bundle-key';
import { Enrolment } from './identity/enrolment';
import { FetchAdmission } from './identity/fetch-admission';
import { RevocationJournal } from './identity/revocation-journal';
import { ServerCertificate } from './identity/server-certificate';
import { LearnerQueue } from './jobs/learner-queue';
import { RolloutQueue } from './jobs/rollout-queue';
import { Metrics } from './metrics';
import { FirstAdmin } from './operator/first-admin';
import { OperatorServer } from './operator/operator-server';
import { PeerExchange } from './peers/peer-exchange';
import { Presence } from './presence';
import { RedisLink } from './registry/redis-link';
import { Registry } from './registry/registry';
import { LearnerRollouts } from './rollout/learner-rollouts';
import { PinExpiry } from './rollout/pin-expiry';
import { RolloutEngine } from './rollout/rollout-engine';
import { StagedRollouts } from './rollout/staged-rollouts';
import { SessionDirectory } from './sessions/session-directory';
import { WarmExchange } from './warm/warm-exchange';

export { type CoordinatorConfig, readConfig, SETTINGS } from './config';
export { initFleet, type NewFleet } from './identity/init-fleet';
export { inspectRedis, type RedisCheckup } from './registry/redis-checkup';

export interface CoordinatorAddresses {
  gatewayAddress: string;
  operatorAddress: string;
  httpAddress: string;
  /** null: it keeps no models */
  blobAddress: string | null;
}

export interface Coordinator {
  readonly lifecycle: Lifecycle;
  readonly registry: Registry;
  /** valid once started */
  addresses(): CoordinatorAddresses;
}

/** What tests make shorter than it is in earnest. */
export type CoordinatorTuning = Pick<GatewayOptions, 'leaseTtlMs' | 'helloTimeoutMs' | 'connectionWaitMs' | 'keepalive'> & { redisStartDeadlineMs?: number; rolloutLockMs?: number; now?: () => number };

export function buildCoordinator(config: CoordinatorConfig, log: Logger, tuning: CoordinatorTuning = {}): Coordinator {
  const { coordinatorId, jaegerUrl } = config;
  const { redis } = config;
  const metrics = new Metrics();
  const link = new RedisLink(redis, log, tuning.redisStartDeadlineMs, (ms) => metrics.redisAnswers.observe(ms / 1000));
  const registry = new Registry(link, { prefix: config.redisPrefix, coordinatorId, now: tuning.now }, log);
  const rollouts = new RolloutEngine(registry, log, metrics);
  const queue = new LearnerQueue({ redis, redisPrefix: config.redisPrefix, everyMs: config.learnEveryMs }, link, log);
  const now = tuning.now ?? Date.now;
  const certificate = config.tlsFolder === null ? null : new ServerCertificate({ folder: config.tlsFolder, hosts: [config.gateway.host, config.operator.host, config.blobListen.host], now }, log);
  const staged = new StagedRollouts(registry, rollouts, config.gateText, (id) => rolloutQueue.wake(id), log);
  const rolloutQueue: RolloutQueue = new RolloutQueue({ step: (id) => staged.step(id), active: () => registry.stagedRollouts.active() },
    { redis, redisPrefix: config.redisPrefix, lockMs: tuning.rolloutLockMs }, link, log);
  const learnerRollouts = new LearnerRollouts(registry, staged, config.learnerStaging, now);
  const pinExpiry = new PinExpiry({ registry, rollouts, staged, now, log });
  const enrolment = certificate && new Enrolment({
    registry, ca: () => certificate.ca, bundleKey: () => readBundleKey(config.tlsFolder!, log), now, lifeMs: config.certificateLifeMs, graceMs: config.reenrolGraceMs, log,
  });
  const journal = config.tlsFolder === null ? null : new RevocationJournal({ folder: config.tlsFolder, registry, log });
  const artifacts = new ArtifactStore(config.artifactFolder, now);
  const objects = config.artifactS3 ? new S3Objects(config.artifactS3) : config.artifactFolder === null ? null : new FolderObjects(config.artifactFolder);
  const blobs = new BlobStore(objects);
  const models = new ModelStore(blobs, (work) => registry.turns.inTurn('models', 'another push or removal of a model', work), now);
  const fetchers = new FetchAdmission(registry, now);
  const blobServer = new BlobServer({ address: config.blobListen, certificate, now, random: Math.random }, { blobs, admission: fetchers, metrics, log });
  const sessions = new SessionDirectory<AgentSession>();
  const telemetry = new TelemetryBatch({ get up() { return link.up; }, count: (frames) => registry.telemetry.count(frames) }, metrics, log);
  const warm = new WarmExchange(registry.warm, { intervalMs: config.expertUseIntervalMs }, metrics, log);
  const peers = new PeerExchange(registry.peers, registry.events, now, log);
  const gateway = new AgentGateway(sessions, { registry, alignDevice: (id) => rollouts.alignDevice(id), telemetry, reports: new ReportBatch(() => rollouts.writer.writing), warm, windowRoom: new WindowRoom(), peers, metrics, log },
    { ...config, address: config.gateway, leaseTtlMs: tuning.leaseTtlMs, helloTimeoutMs: tuning.helloTimeoutMs, connectionWaitMs: tuning.connectionWaitMs, keepalive: tuning.keepalive,
      credentials: certificate ? () => certificate.credentials(true) : undefined, enrolment, artifacts, fetchers, blobPort: () => blobServer.port });
  const operator = new OperatorServer(config.operator,
    { registry, rollouts, staged, learnerRollouts, sessions, queueLearnerJob: () => queue.addNow(), jaegerUrl, coordinatorId, requireOperatorToken: config.requireOperatorToken, artifacts, blobs, models, enrolment, now, log },
    certificate ? () => certificate.credentials(false) : undefined,
    (service, method, code) => metrics.operatorCalls.inc({ grpc_service: service, grpc_method: method, grpc_code: code }));
  const firstAdmin = new FirstAdmin(registry, config, log);
  const http = new HttpServer(config.http, {
    health: () => (link.up ? { status: 'ok', redis: 'up' } : { status: 'degraded', redis: 'away' }),
    metrics: async () => {
      metrics.redisUp.set(link.up ? 1 : 0);
      metrics.devicesOnline.set(sessions.size);
      metrics.queued.set({ queue: 'connections' }, gateway.waitingConnections);
      metrics.queued.set({ queue: 'hellos' }, gateway.waiting);
      metrics.queued.set({ queue: 'frames' }, telemetry.size);
      metrics.telemetryInterval.set(gateway.telemetryIntervalMs / 1000);
      return { contentType: metrics.contentType, text: await metrics.text() };
    },
  });
  const addresses = () => ({ blobAddress: blobServer.address, gatewayAddress: gateway.address, operatorAddress: operator.address, httpAddress: http.address });
  const announcement = {
    name: 'announcement',
    async start() {
      if (!certificate) log.warn('PLAINTEXT: nothing is encrypted, and whoever reaches the ports controls the fleet; see moefleet fleet init and --tls-dir');
      if (config.plaintextBeyondLoopback) {
        log.warn(addresses(), 'INSECURE: listening beyond loopback in plaintext without authentication; whoever reaches these ports controls the fleet');
      }
      log.info({ ...addresses(), coordinatorId, version: VERSION, redisUrl: link.url, tls: certificate !== null, ...(certificate ? { caFingerprint: certificate.ca.fingerprint } : {}) }, 'listening');
    },
    async stop() {},
  };
  const presence = new Presence(registry, coordinatorId,
    () => ({ gatewayAddress: gateway.address, operatorAddress: operator.address, streams: sessions.size, framesShed: telemetry.shed }), log);
  const objectStore = { name: 'object store', async start() {}, async stop() { objects?.stop(); } };
  const lifecycle = new Lifecycle([...(certificate ? [certificate] : []), link, ...(journal ? [journal] : []), queue, rolloutQueue, objectStore, blobServer, gateway, firstAdmin, operator, http, rollouts, pinExpiry, presence, announcement], log);
  return { lifecycle, registry, addresses };
}

/**
 * By how many percent of what is alive the heap grows before it is looked through again. By itself V8 lets it grow to two and a half
 * times as much: of 10,000 devices 190 MB are alive, and 300 more lay there until somebody looked.
 */
const HEAP_GROWS_PERCENT = 50;

/** `moefleet coordinator run`: resolves with the exit code (2: a setting makes no sense). */
export async function runCoordinator(flags: Record<string, unknown>, env: NodeJS.ProcessEnv): Promise<number> {
  let config: CoordinatorConfig;
  try {
    config = readConfig(mergeSettings(SETTINGS, flags, env));
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    createLogger('coordinator', 'info').fatal({ setting: error.setting }, error.message);
    return 2;
  }
  setFlagsFromString(`--heap-growing-percent=${HEAP_GROWS_PERCENT}`);
  const log = createLogger('coordinator', config.logLevel);
  return runUntilSignal(buildCoordinator(config, log).lifecycle, log);
}
