/** Flags and environment of the coordinator, read once. */
import { hostname } from 'node:os';
import { randomBytes } from 'node:crypto';
import { join, resolve } from 'node:path';
import {
  ConfigError, formatAddress, isLoopback, type ListenAddress, parseDuration, parseListenAddress, readBoolean, readInteger, readNumber, type Env, type Setting,
} from '@moefleet/runtime';
import { readRedisAddress, readRedisPrefix, REDIS_SETTINGS, type RedisAddress } from '@moefleet/runtime/redis';
import type { S3Place } from './artifacts/s3-objects';
import { InvalidRequestError } from './errors';
import { parseGates } from './rollout/gate';
import { readGateText } from './rollout/gate-text';
import type { LearnerStaging } from './rollout/learner-rollouts';
import { planStages } from './rollout/stage-plan';

const DEFAULT_LEARNER_GATE = 'perplexityLoss<2%,errors==0';
const MOST_DEVICES = 10_000_000;
const BLOB_PORT_AFTER = 3;
const MOST_PORT = 65_535;

export const SETTINGS: readonly Setting[] = [
  ...REDIS_SETTINGS,
  { flags: '--gateway <host:port>', env: 'MOEFLEET_GATEWAY_LISTEN', description: 'where agents connect (gRPC); port 0 takes a free one', fallback: '127.0.0.1:7400' },
  { flags: '--operator <host:port>', env: 'MOEFLEET_OPERATOR_LISTEN', description: 'where the command line and the learner connect (gRPC)', fallback: '127.0.0.1:7401' },
  { flags: '--http <host:port>', env: 'MOEFLEET_HTTP_LISTEN', description: '/healthz and /metrics', fallback: '127.0.0.1:7402' },
  { flags: '--tls-dir <folder>', env: 'MOEFLEET_TLS_DIR', description: 'the fleet\'s folder (moefleet fleet init): agents and operators connect over TLS 1.3, agents with a certificate of their own' },
  { flags: '--require-operator-token', env: 'MOEFLEET_REQUIRE_OPERATOR_TOKEN', description: 'serve operators and learners only with a token (moefleet operator create)', fallback: 'true where TLS is on or --operator is beyond loopback' },
  { flags: '--admin-token-file <file>', env: 'MOEFLEET_ADMIN_TOKEN_FILE', description: 'where the first admin\'s token is written if there are no operators yet; one that is there already is taken', fallback: 'moefleet-admin.token, in the folder of --tls-dir where there is one' },
  { flags: '--certificate-days <days>', env: 'MOEFLEET_CERTIFICATE_DAYS', description: 'how long a device\'s certificate is valid; agents renew it at two thirds', fallback: '7' },
  { flags: '--reenrol-days <days>', env: 'MOEFLEET_REENROL_DAYS', description: 'after that: how long a device may still get a new one with its key alone, without a token', fallback: '30' },
  { flags: '--insecure-plaintext', env: 'MOEFLEET_INSECURE_PLAINTEXT', description: 'allow addresses other than loopback although nothing is encrypted or authenticated', fallback: 'false' },
  { flags: '--jaeger-url <url>', env: 'MOEFLEET_JAEGER_URL', description: 'base address of Jaeger, for links to traces, e.g. http://127.0.0.1:16686' },
  { flags: '--learn-every <seconds>', env: 'MOEFLEET_LEARN_EVERY', description: 'seconds between learner jobs; 0: only when asked', fallback: '10' },
  { flags: '--telemetry-interval <ms>', env: 'MOEFLEET_TELEMETRY_INTERVAL_MS', description: 'milliseconds between a device\'s telemetry frames', fallback: '1000' },
  { flags: '--expert-use-interval <seconds>', env: 'MOEFLEET_EXPERT_USE_INTERVAL', description: 'seconds between a device\'s reports of which experts it uses, from which new devices\' caches are filled; 0: neither reports nor warm lists', fallback: '300' },
  { flags: '--frames-per-second <n>', env: 'MOEFLEET_FRAMES_PER_SECOND', description: 'telemetry frames per second this coordinator holds to, by stretching the interval as devices join', fallback: '2000' },
  { flags: '--hellos-per-second <n>', env: 'MOEFLEET_HELLOS_PER_SECOND', description: 'devices let in per second; the rest waits or is told when to come again', fallback: '400' },
  { flags: '--connections-per-second <n>', env: 'MOEFLEET_CONNECTIONS_PER_SECOND', description: 'connections of agents per second whose TLS handshake is begun, with a quarter as many under way at once; the rest waits, or is reset and comes again', fallback: '400' },
  { flags: '--device-messages-per-second <n>', env: 'MOEFLEET_DEVICE_MESSAGES_PER_SECOND', description: 'messages one device may send; beyond it telemetry is shed, then the device cut off for a while', fallback: '50' },
  { flags: '--device-bytes-per-second <n>', env: 'MOEFLEET_DEVICE_BYTES_PER_SECOND', description: 'bytes one device may send, likewise', fallback: '1048576' },
  { flags: '--coordinator-id <id>', env: 'MOEFLEET_COORDINATOR_ID', description: 'name of this coordinator in leases and logs; default: host name and a random part' },
  { flags: '--gate-text <file>', env: 'MOEFLEET_GATE_TEXT', description: 'text on which devices measure their quality for gates of rollouts; default: an English text that comes with the coordinator' },
  { flags: '--learner-stages <list>', env: 'MOEFLEET_LEARNER_STAGES', description: 'stages in which devices get what the learner proposes; default: up to ten devices at once, more as 1,5%,25%,100%' },
  { flags: '--learner-soak <time>', env: 'MOEFLEET_LEARNER_SOAK', description: 'how long each of these stages is watched, such as 10m; default: 60s where there is more than one' },
  { flags: '--learner-gate <list>', env: 'MOEFLEET_LEARNER_GATE', description: 'what must hold on each device for the learner\'s values to stay, else they are taken back; keep it above the learner\'s --budget; none: no gate', fallback: DEFAULT_LEARNER_GATE },
  { flags: '--artifact-dir <folder>', env: 'MOEFLEET_ARTIFACT_DIR', description: 'keeps what devices fetch: models (moefleet model push) and releases of the agent (moefleet agent push); coordinators of a fleet share it; none: nothing is kept', fallback: 'artifacts, in the folder of --tls-dir where there is one' },
  { flags: '--artifact-s3 <url>', env: 'MOEFLEET_ARTIFACT_S3', description: 'keeps models in a bucket instead, s3://BUCKET/PREFIX; credentials as the AWS SDK finds them (AWS_ACCESS_KEY_ID, shared files, the machine\'s role)' },
  { flags: '--artifact-s3-endpoint <url>', env: 'MOEFLEET_ARTIFACT_S3_ENDPOINT', description: 'of an S3-compatible service other than AWS, such as https://minio.example:9000' },
  { flags: '--artifact-s3-region <name>', env: 'MOEFLEET_ARTIFACT_S3_REGION', description: 'region of the bucket', fallback: 'as the AWS SDK finds it; us-east-1 with an endpoint' },
  { flags: '--blob-listen <host:port>', env: 'MOEFLEET_BLOB_LISTEN', description: 'where devices fetch models (HTTP, with --tls-dir HTTPS); behind a balancer it must be reached at the address that agents connect to, under this port', fallback: 'the host of --gateway, its port + 3' },
  { flags: '--log-level <level>', env: 'MOEFLEET_LOG_LEVEL', description: 'trace, debug, info, warn, error, fatal or silent', fallback: 'info' },
];

export interface CoordinatorConfig {
  readonly redis: Required<RedisAddress>;
  readonly redisPrefix: string;
  readonly gateway: ListenAddress;
  readonly operator: ListenAddress;
  readonly http: ListenAddress;
  /** null: plaintext */
  readonly tlsFolder: string | null;
  readonly certificateLifeMs: number;
  readonly reenrolGraceMs: number;
  /** any address is other than loopback, and that was allowed explicitly */
  readonly plaintextBeyondLoopback: boolean;
  /** without a slash at its end; empty where there is none */
  readonly jaegerUrl: string;
  /** 0: jobs are added on request only */
  readonly learnEveryMs: number;
  /** at least; more where that many devices would send more than framesPerSecond */
  readonly telemetryIntervalMs: number;
  /** 0: warm lists are off */
  readonly expertUseIntervalMs: number;
  readonly framesPerSecond: number;
  readonly hellosPerSecond: number;
  readonly connectionsPerSecond: number;
  readonly deviceBudget: { readonly messagesPerSecond: number; readonly bytesPerSecond: number };
  readonly requireOperatorToken: boolean;
  readonly adminTokenFile: string;
  readonly coordinatorId: string;
  /** what devices measure their quality on */
  readonly gateText: string;
  readonly learnerStaging: LearnerStaging;
  /** null: it keeps none */
  readonly artifactFolder: string | null;
  /** null: models are kept in artifactFolder, if there is one */
  readonly artifactS3: S3Place | null;
  readonly blobListen: ListenAddress;
  readonly logLevel: string;
}

const ADMIN_TOKEN_FILE = 'moefleet-admin.token';
const DAY_MS = 24 * 3_600_000;
const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'];

/** `values` by environment variable name; throws ConfigError. */
export function readConfig(values: Env): CoordinatorConfig {
  const insecure = readBoolean('MOEFLEET_INSECURE_PLAINTEXT', values['MOEFLEET_INSECURE_PLAINTEXT'], false);
  const tlsFolder = values['MOEFLEET_TLS_DIR'] ? resolve(values['MOEFLEET_TLS_DIR']) : null;
  const listen = (name: string, fallback: string, encrypted: boolean): ListenAddress => {
    const address = parseListenAddress(name, values[name] || fallback);
    if (!isLoopback(address.host) && !encrypted && !insecure) {
      throw new ConfigError(name, values[name] ?? '', `a loopback address; what travels here is neither encrypted nor authenticated, so any other address also needs ${name === 'MOEFLEET_HTTP_LISTEN' ? '' : '--tls-dir (see moefleet fleet init), or '}--insecure-plaintext`);
    }
    return address;
  };
  const gateway = listen('MOEFLEET_GATEWAY_LISTEN', '127.0.0.1:7400', tlsFolder !== null);
  const operator = listen('MOEFLEET_OPERATOR_LISTEN', '127.0.0.1:7401', tlsFolder !== null);
  const blobListen = listen('MOEFLEET_BLOB_LISTEN', defaultBlobListen(gateway), tlsFolder !== null);
  const http = listen('MOEFLEET_HTTP_LISTEN', '127.0.0.1:7402', false);
  return Object.freeze({
    redis: readRedisAddress(values),
    redisPrefix: readRedisPrefix(values),
    gateway,
    operator,
    http,
    tlsFolder,
    certificateLifeMs: DAY_MS * readNumber('MOEFLEET_CERTIFICATE_DAYS', values['MOEFLEET_CERTIFICATE_DAYS'], 7, 0.00001, 3650),
    reenrolGraceMs: DAY_MS * readNumber('MOEFLEET_REENROL_DAYS', values['MOEFLEET_REENROL_DAYS'], 30, 0, 3650),
    plaintextBeyondLoopback: (tlsFolder === null ? [gateway, operator, http, blobListen] : [http]).some((address) => !isLoopback(address.host)),
    jaegerUrl: values['MOEFLEET_JAEGER_URL'] ? readUrl('MOEFLEET_JAEGER_URL', values['MOEFLEET_JAEGER_URL'], ['http:', 'https:']).replace(/\/+$/, '') : '',
    learnEveryMs: Math.round(1000 * readNumber('MOEFLEET_LEARN_EVERY', values['MOEFLEET_LEARN_EVERY'], 10, 0, 86_400)),
    telemetryIntervalMs: readInteger('MOEFLEET_TELEMETRY_INTERVAL_MS', values['MOEFLEET_TELEMETRY_INTERVAL_MS'], 1000, 50, 3_600_000),
    expertUseIntervalMs: Math.round(1000 * readNumber('MOEFLEET_EXPERT_USE_INTERVAL', values['MOEFLEET_EXPERT_USE_INTERVAL'], 300, 0, 86_400)),
    framesPerSecond: readInteger('MOEFLEET_FRAMES_PER_SECOND', values['MOEFLEET_FRAMES_PER_SECOND'], 2000, 1, 1_000_000),
    hellosPerSecond: readInteger('MOEFLEET_HELLOS_PER_SECOND', values['MOEFLEET_HELLOS_PER_SECOND'], 400, 1, 100_000),
    connectionsPerSecond: readInteger('MOEFLEET_CONNECTIONS_PER_SECOND', values['MOEFLEET_CONNECTIONS_PER_SECOND'], 400, 1, 100_000),
    deviceBudget: {
      messagesPerSecond: readInteger('MOEFLEET_DEVICE_MESSAGES_PER_SECOND', values['MOEFLEET_DEVICE_MESSAGES_PER_SECOND'], 50, 1, 100_000),
      bytesPerSecond: readInteger('MOEFLEET_DEVICE_BYTES_PER_SECOND', values['MOEFLEET_DEVICE_BYTES_PER_SECOND'], 1024 * 1024, 1024, 1024 * 1024 * 1024),
    },
    requireOperatorToken: readBoolean('MOEFLEET_REQUIRE_OPERATOR_TOKEN', values['MOEFLEET_REQUIRE_OPERATOR_TOKEN'], tlsFolder !== null || !isLoopback(operator.host)),
    adminTokenFile: resolve(values['MOEFLEET_ADMIN_TOKEN_FILE'] || join(tlsFolder ?? '.', ADMIN_TOKEN_FILE)),
    coordinatorId: readMatching('MOEFLEET_COORDINATOR_ID', values['MOEFLEET_COORDINATOR_ID'] || defaultCoordinatorId(), /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/, 'an id of letters, digits, ".", "_" and "-"'),
    artifactFolder: readArtifactFolder(values['MOEFLEET_ARTIFACT_DIR'], tlsFolder),
    artifactS3: readS3Place(values),
    blobListen,
    gateText: readGateText(values['MOEFLEET_GATE_TEXT'] ?? ''),
    learnerStaging: readLearnerStaging(values),
    logLevel: readMatching('MOEFLEET_LOG_LEVEL', values['MOEFLEET_LOG_LEVEL'] || 'info', new RegExp(`^(?:${LOG_LEVELS.join('|')})$`), `one of ${LOG_LEVELS.join(', ')}`),
  });
}

/** Beside the agents' port, so that whoever lets these in finds it; a free one where theirs is. */
function defaultBlobListen({ host, port }: ListenAddress): string {
  return formatAddress(host, port === 0 ? 0 : Math.min(port + BLOB_PORT_AFTER, MOST_PORT));
}

/** What a coordinator keeps of its fleet lies in one folder. */
function readArtifactFolder(value: string | undefined, tlsFolder: string | null): string | null {
  if (value) return value === 'none' ? null : resolve(value);
  return tlsFolder && join(tlsFolder, 'artifacts');
}

function readS3Place(values: Env): S3Place | null {
  const url = values['MOEFLEET_ARTIFACT_S3'] ?? '';
  const endpoint = values['MOEFLEET_ARTIFACT_S3_ENDPOINT'] ? readUrl('MOEFLEET_ARTIFACT_S3_ENDPOINT', values['MOEFLEET_ARTIFACT_S3_ENDPOINT'], ['http:', 'https:']) : '';
  if (url === '') {
    if (endpoint !== '') throw new ConfigError('MOEFLEET_ARTIFACT_S3_ENDPOINT', endpoint, 'of use without --artifact-s3 s3://BUCKET/PREFIX');
    return null;
  }
  const [, bucket, prefix = ''] = /^s3:\/\/([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:\/([A-Za-z0-9][A-Za-z0-9._/-]{0,199}))?\/?$/.exec(url) ?? [];
  if (!bucket) throw new ConfigError('MOEFLEET_ARTIFACT_S3', url, 'a bucket such as s3://fleet/models');
  return { bucket, prefix: prefix.replace(/\/+$/, ''), endpoint, region: values['MOEFLEET_ARTIFACT_S3_REGION'] ?? '' };
}

function readLearnerStaging(values: Env): LearnerStaging {
  const [stages, soak, gate] = [values['MOEFLEET_LEARNER_STAGES'] ?? '', values['MOEFLEET_LEARNER_SOAK'] ?? '', values['MOEFLEET_LEARNER_GATE'] || DEFAULT_LEARNER_GATE];
  const staging = { stages, soakMs: soak === '' ? null : readSpan('MOEFLEET_LEARNER_SOAK', soak), gate: gate === 'none' ? '' : gate };
  // Any fleet will do to see whether they make sense.
  for (const [name, value, check] of [['MOEFLEET_LEARNER_STAGES', stages, () => planStages(stages, MOST_DEVICES)], ['MOEFLEET_LEARNER_GATE', gate, () => parseGates(staging.gate)]] as const) {
    try {
      check();
    } catch (error) {
      if (!(error instanceof InvalidRequestError)) throw error;
      throw new ConfigError(name, value, error.expected);
    }
  }
  return staging;
}

function readSpan(name: string, text: string): number {
  try {
    return text === '0' ? 0 : parseDuration(text);
  } catch {
    throw new ConfigError(name, text, 'a span of time such as 60s or 10m, or 0');
  }
}

function readUrl(name: string, value: string, protocols: readonly string[]): string {
  if (!URL.canParse(value) || !protocols.includes(new URL(value).protocol)) {
    throw new ConfigError(name, value, `a URL that begins with ${protocols.map((protocol) => `${protocol}//`).join(' or ')}`);
  }
  return value;
}

function readMatching(name: string, value: string, form: RegExp, expected: string): string {
  if (!form.test(value)) throw new ConfigError(name, value, expected);
  return value;
}

function defaultCoordinatorId(): string {
  const host = hostname().replace(/[^A-Za-z0-9._-]/g, '').replace(/^[._-]+/, '').slice(0, 40) || 'coordinator';
  return `${host}-${randomBytes(4).toString('hex')}`;
}
