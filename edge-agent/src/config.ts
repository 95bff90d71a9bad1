/** The agent's settings, from flags and environment, read once. */
import { existsSync } from 'node:fs';
import { homedir, hostname } from 'node:os';
import { isAbsolute, join, resolve } from 'node:path';
import { ConfigError, type EnrolmentTokenText, type Env, parseEnrolmentToken, readBoolean, readInteger, readLabels, readNumber, readSize, type Setting } from '@moefleet/runtime';
import type { FetchLimits } from './models/fetch-allowance';
import { parseQuietHours, type QuietHours } from './models/quiet-hours';

export const SETTINGS: readonly Setting[] = [
  { flags: '--model <path>', env: 'MOEFLEET_MODEL', description: 'GGUF file of a Mixture-of-Experts model (required)' },
  { flags: '--id <id>', env: 'MOEFLEET_DEVICE_ID', description: 'device id, unique in the fleet', fallback: 'host name' },
  { flags: '--state-dir <folder>', env: 'MOEFLEET_STATE_DIR', description: 'folder of the agent\'s state', fallback: '~/.local/state/moefleet/<id>' },
  { flags: '--coordinator <host:port>', env: 'MOEFLEET_COORDINATOR', description: 'the coordinator\'s agent gateway; "none" runs without', fallback: '127.0.0.1:7400' },
  { flags: '--enrol-token <token>', env: 'MOEFLEET_ENROL_TOKEN', description: 'what lets this device into a fleet with TLS (moefleet token create); used until it has a certificate, which stays in the state folder' },
  { flags: '--labels <k=v,...>', env: 'MOEFLEET_LABELS', description: 'labels that selectors match' },
  { flags: '--max-cache <size>', env: 'MOEFLEET_MAX_CACHE', description: 'most memory for experts, such as 2GiB; nobody can set more from outside', fallback: 'half of the memory available at start' },
  { flags: '--max-lambda <x>', env: 'MOEFLEET_MAX_LAMBDA', description: 'highest lambda this device accepts, in [0,1]', fallback: '1' },
  { flags: '--context <tokens>', env: 'MOEFLEET_CONTEXT', description: 'context length, at most the model\'s own; 0: the model\'s own', fallback: '4096' },
  { flags: '--threads <n>', env: 'MOEFLEET_THREADS', description: 'compute threads; 0: physical cores minus one', fallback: '0' },
  { flags: '--lanes <n>', env: 'MOEFLEET_LANES', description: 'parallel flash reads; 0: 4', fallback: '0' },
  { flags: '--prefetch <when>', env: 'MOEFLEET_PREFETCH', description: 'read experts ahead that the next layer is likely to miss: on, off, or auto, where that is measured to pay; what waits counts against --max-cache', fallback: 'off' },
  { flags: '--warm-start <when>', env: 'MOEFLEET_WARM_START', description: 'auto: fill the cache, while no request runs, with the experts that the fleet finds worth holding, and tell it which ones are used here; off: neither', fallback: 'auto' },
  { flags: '--no-direct-io', env: 'MOEFLEET_NO_DIRECT_IO', description: 'read experts through the page cache' },
  { flags: '--verify', env: 'MOEFLEET_VERIFY', description: 'check everything that is read of the model against its checksums; the model must be packed (moefleet model pack)' },
  { flags: '--prefill-bytes <size>', env: 'MOEFLEET_PREFILL_BYTES', description: 'most expert memory beyond the cache while a prompt is read; 0: one layer\'s worth', fallback: '0' },
  { flags: '--memory-pressure <mode>', env: 'MOEFLEET_MEMORY_PRESSURE', description: 'auto: the expert cache gives way while memory is short, and comes back slowly; off: it never does', fallback: 'auto' },
  { flags: '--memory-low <size>', env: 'MOEFLEET_MEMORY_LOW', description: 'with less memory available than this the cache gives way', fallback: '5% of the memory, 64MiB to 1GiB, and no more than a sixth of it' },
  { flags: '--memory-stall <percent>', env: 'MOEFLEET_MEMORY_STALL', description: 'so it does when tasks stand still for memory for this share of the time', fallback: '10' },
  { flags: '--http <host:port>', env: 'MOEFLEET_HTTP', description: 'address of the OpenAI-compatible API; port 0: any free one', fallback: '127.0.0.1:8400' },
  { flags: '--api-key <key>', env: 'MOEFLEET_API_KEY', description: 'asked of HTTP clients as a bearer token', fallback: 'none' },
  { flags: '--queue <n>', env: 'MOEFLEET_QUEUE', description: 'requests that may wait for the engine; one more gets a 429', fallback: '16' },
  { flags: '--otlp-endpoint <url>', env: 'OTEL_EXPORTER_OTLP_ENDPOINT', description: 'OTLP/HTTP collector, such as http://127.0.0.1:4318; empty: spans stay in the spool' },
  { flags: '--spool-bytes <size>', env: 'MOEFLEET_SPOOL_BYTES', description: 'most disk for spans that wait for the collector', fallback: '64MiB' },
  { flags: '--window-spool-bytes <size>', env: 'MOEFLEET_WINDOW_SPOOL_BYTES', description: 'most disk for router windows that wait for the coordinator', fallback: '16MiB' },
  { flags: '--trace-ratio <x>', env: 'MOEFLEET_TRACE_RATIO', description: 'share of requests traced where no spec says otherwise, in [0,1]', fallback: '1' },
  { flags: '--models-dir <folder>', env: 'MOEFLEET_MODELS_DIR', description: 'folder of models that the fleet names and this device fetches (moefleet model set)', fallback: 'models in the state folder' },
  { flags: '--fetch-bytes-per-second <size>', env: 'MOEFLEET_FETCH_BYTES_PER_SECOND', description: 'most that is fetched of models from the coordinator in a second, such as 500KiB; what the fleet asks for bounds further, devices beside this one are not counted', fallback: 'no bound' },
  { flags: '--quiet-hours <from-to>', env: 'MOEFLEET_QUIET_HOURS', description: 'when no model is fetched from the coordinator, by this device\'s clock, such as 07:00-19:00 or 22:00-06:00, beside those that the fleet sets', fallback: 'none' },
  { flags: '--peer-listen <host:port>', env: 'MOEFLEET_PEER_LISTEN', description: 'where devices beside this one get chunks of models, port 0: any free one; in a fleet without TLS whoever reaches it does', fallback: 'any port, on all interfaces in a fleet with TLS, on loopback with a coordinator there, else nowhere' },
  { flags: '--no-peers', env: 'MOEFLEET_NO_PEERS', description: 'models come from the coordinator alone, and go to nobody' },
  { flags: '--bundle-key <file>', env: 'MOEFLEET_BUNDLE_KEY', description: 'public key that releases of the agent have to be signed with (npm run bundle:keygen)', fallback: 'the one that the fleet tells at enrolment, which stays in the state folder' },
  { flags: '--trial <seconds>', env: 'MOEFLEET_TRIAL', description: 'how long another release of the agent has to be healthy', fallback: '120' },
  { flags: '--log-level <level>', env: 'MOEFLEET_LOG_LEVEL', description: 'trace, debug, info, warn, error, fatal or silent', fallback: 'info' },
];

const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'];

export interface AgentConfig {
  readonly modelPath: string;
  readonly deviceId: string;
  readonly stateFolder: string;
  /** host:port, null to run without */
  readonly coordinator: string | null;
  /** null where none was given */
  readonly enrolToken: { readonly text: string; readonly parsed: EnrolmentTokenText } | null;
  readonly labels: Readonly<Record<string, string>>;
  /** null: half of what is available when the agent starts */
  readonly maxCacheBytes: number | null;
  readonly maxLambda: number;
  readonly contextTokens: number;
  readonly threads: number;
  readonly lanes: number;
  readonly prefetch: 'auto' | 'off' | 'on';
  readonly warmStart: boolean;
  readonly directIo: boolean;
  readonly verify: boolean;
  readonly prefillBytes: number;
  readonly memoryPressure: 'auto' | 'off';
  /** null: a share of the memory there is */
  readonly memoryLowBytes: number | null;
  readonly memoryStallPercent: number;
  readonly http: { readonly host: string; readonly port: number };
  readonly apiKey: string | null;
  readonly maxWaiting: number;
  /** base address, null for no export */
  readonly otlpEndpoint: string | null;
  readonly spoolBytes: number;
  readonly windowSpoolBytes: number;
  readonly traceRatio: number;
  readonly modelsFolder: string;
  readonly fetchLimits: FetchLimits;
  /** null: as the fleet's security allows */
  readonly peerListen: { readonly host: string; readonly port: number } | null;
  readonly peers: boolean;
  /** file; null: the key that was pinned at enrolment */
  readonly bundleKey: string | null;
  readonly trialMs: number;
  readonly logLevel: string;
}

/** Throws ConfigError, which names the setting, its value and what would do. */
export function readConfig(values: Env): AgentConfig {
  const deviceId = readDeviceId(values['MOEFLEET_DEVICE_ID']);
  const logLevel = values['MOEFLEET_LOG_LEVEL'] || 'info';
  if (!LOG_LEVELS.includes(logLevel)) throw new ConfigError('--log-level', logLevel, `one of ${LOG_LEVELS.join(', ')}`);
  const coordinator = values['MOEFLEET_COORDINATOR'] ?? '127.0.0.1:7400';
  const maxCache = values['MOEFLEET_MAX_CACHE'];
  const stateFolder = resolve(values['MOEFLEET_STATE_DIR'] || join(homedir(), '.local', 'state', 'moefleet', deviceId));
  const memoryLow = values['MOEFLEET_MEMORY_LOW'];
  return Object.freeze({
    modelPath: readModelPath(values['MOEFLEET_MODEL']),
    deviceId,
    stateFolder,
    coordinator: coordinator === '' || coordinator === 'none' ? null : formatAddress(readAddress('--coordinator', coordinator, 1)),
    enrolToken: readEnrolToken(values['MOEFLEET_ENROL_TOKEN']),
    labels: Object.freeze(readLabels('--labels', values['MOEFLEET_LABELS'])),
    maxCacheBytes: maxCache === undefined || maxCache === '' ? null : readSize('--max-cache', maxCache, 0),
    maxLambda: readNumber('--max-lambda', values['MOEFLEET_MAX_LAMBDA'], 1, 0, 1),
    contextTokens: readInteger('--context', values['MOEFLEET_CONTEXT'], 4096, 0, 1_048_576),
    threads: readInteger('--threads', values['MOEFLEET_THREADS'], 0, 0, 1024),
    lanes: readInteger('--lanes', values['MOEFLEET_LANES'], 0, 0, 64),
    prefetch: readPrefetch(values['MOEFLEET_PREFETCH']),
    warmStart: readOnOff('--warm-start', values['MOEFLEET_WARM_START']),
    directIo: !readBoolean('--no-direct-io', values['MOEFLEET_NO_DIRECT_IO'], false),
    verify: readBoolean('--verify', values['MOEFLEET_VERIFY'], false),
    prefillBytes: readSize('--prefill-bytes', values['MOEFLEET_PREFILL_BYTES'], 0),
    memoryPressure: readOnOff('--memory-pressure', values['MOEFLEET_MEMORY_PRESSURE']) ? 'auto' : 'off',
    memoryLowBytes: memoryLow === undefined || memoryLow === '' ? null : readSize('--memory-low', memoryLow, 0),
    memoryStallPercent: readNumber('--memory-stall', values['MOEFLEET_MEMORY_STALL'], 10, 0.1, 100),
    http: Object.freeze(readAddress('--http', values['MOEFLEET_HTTP'] || '127.0.0.1:8400', 0)),
    apiKey: values['MOEFLEET_API_KEY'] || null,
    maxWaiting: readInteger('--queue', values['MOEFLEET_QUEUE'], 16, 0, 10_000),
    otlpEndpoint: readUrl('--otlp-endpoint', values['OTEL_EXPORTER_OTLP_ENDPOINT']),
    windowSpoolBytes: readSize('--window-spool-bytes', values['MOEFLEET_WINDOW_SPOOL_BYTES'], 16 * 1024 ** 2),
    spoolBytes: readSize('--spool-bytes', values['MOEFLEET_SPOOL_BYTES'], 64 * 1024 ** 2),
    traceRatio: readNumber('--trace-ratio', values['MOEFLEET_TRACE_RATIO'], 1, 0, 1),
    modelsFolder: resolve(values['MOEFLEET_MODELS_DIR'] || join(stateFolder, 'models')),
    fetchLimits: Object.freeze({ bytesPerSecond: readSize('--fetch-bytes-per-second', values['MOEFLEET_FETCH_BYTES_PER_SECOND'], 0) || null, quietHours: readQuietHours(values['MOEFLEET_QUIET_HOURS']) }),
    peerListen: values['MOEFLEET_PEER_LISTEN'] ? Object.freeze(readAddress('--peer-listen', values['MOEFLEET_PEER_LISTEN'], 0)) : null,
    peers: !readBoolean('--no-peers', values['MOEFLEET_NO_PEERS'], false),
    bundleKey: values['MOEFLEET_BUNDLE_KEY'] ? resolve(values['MOEFLEET_BUNDLE_KEY']) : null,
    trialMs: Math.round(1000 * readNumber('--trial', values['MOEFLEET_TRIAL'], 120, 1, 86_400)),
    logLevel,
  });
}

function readPrefetch(value = 'off'): 'auto' | 'off' | 'on' {
  if (value !== 'auto' && value !== 'off' && value !== 'on') throw new ConfigError('--prefetch', value, 'auto, off or on');
  return value;
}

function readQuietHours(value: string | undefined): QuietHours | null {
  if (!value) return null;
  const parsed = parseQuietHours(value);
  if (!parsed) throw new ConfigError('--quiet-hours', value, 'two different times of the day such as 22:00-06:00');
  return parsed;
}

function readEnrolToken(value: string | undefined): AgentConfig['enrolToken'] {
  if (!value) return null;
  const parsed = parseEnrolmentToken(value);
  // Half a token is half a secret: it is not repeated here.
  if (!parsed) throw new ConfigError('--enrol-token', `${value.slice(0, 5)}…`, 'a whole enrolment token; make one with: moefleet token create');
  return { text: value.trim(), parsed };
}

function readOnOff(name: string, value = 'auto'): boolean {
  if (value !== 'auto' && value !== 'off') throw new ConfigError(name, value, 'auto or off');
  return value === 'auto';
}

/** A given id must be well formed; a host name is made so. */
function readDeviceId(value: string | undefined): string {
  if (value === undefined || value === '') return hostname().replace(/[^A-Za-z0-9._-]/g, '-').replace(/^[^A-Za-z0-9]+/, '').slice(0, 63) || 'device';
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/.test(value)) throw new ConfigError('--id', value, 'an id of up to 63 letters, digits, ".", "_" and "-", beginning with a letter or digit');
  return value;
}

function readModelPath(value: string | undefined): string {
  if (!value) throw new ConfigError('--model', '', 'the path of a GGUF file; give one with --model or MOEFLEET_MODEL');
  const path = isAbsolute(value) ? value : resolve(value);
  if (!existsSync(path)) throw new ConfigError('--model', value, 'a file that exists');
  return path;
}

function readAddress(name: string, value: string, minPort: number): { host: string; port: number } {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:\s[\]]+)):(\d{1,5})$/.exec(value);
  const port = Number(match?.[3]);
  if (!match || port < minPort || port > 65_535) throw new ConfigError(name, value, 'an address such as 127.0.0.1:8400 or [::1]:8400');
  return { host: match[1] ?? match[2]!, port };
}

function formatAddress({ host, port }: { host: string; port: number }): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

function readUrl(name: string, value: string | undefined): string | null {
  if (!value) return null;
  const url = URL.canParse(value) ? new URL(value) : null;
  if (!url || !/^https?:$/.test(url.protocol)) throw new ConfigError(name, value, 'an address such as http://127.0.0.1:4318');
  return value.replace(/\/+$/, '');
}
