/** The learner's settings: flags over environment, checked once. */
import { readFileSync } from 'node:fs';
import { basename, extname } from 'node:path';
import { type BudgetRule, parseBudgetRules, readPercent } from './quality-budget';
import { type Routing, ROUTINGS } from '@moefleet/proto';
import { type QualityBudget, ROUTING_NAMES } from './model';
import { ConfigError, type Env, type ListenAddress, parseListenAddress, readInteger, readOperatorToken, type Setting, TOKEN_SETTING } from '@moefleet/runtime';
import { readRedisAddress, readRedisPrefix, REDIS_SETTINGS, type RedisAddress } from '@moefleet/runtime/redis';

/** Tokens per window of the text; each window starts with an empty KV cache. */
export const WINDOW_TOKENS = 256;

export const SETTINGS: readonly Setting[] = [
  { flags: '--model <files>', env: 'MOEFLEET_LEARNER_MODEL', description: 'GGUF file of the model to learn about, or a.gguf,b.gguf,... of several; devices that run another are left alone' },
  { flags: '--text <files>', env: 'MOEFLEET_LEARNER_TEXT', description: 'UTF-8 text that stands for what the devices are used for; a.txt,b.txt,... for several uses. The model should not have seen it' },
  { flags: '--tokens <n>', env: 'MOEFLEET_LEARNER_TOKENS', description: `tokens of the text to score, a multiple of ${WINDOW_TOKENS}; four times as many halve the error`, fallback: '4096' },
  { flags: '--budget <percent>', env: 'MOEFLEET_LEARNER_BUDGET', description: 'perplexity a device may lose to λ, in the mean over the texts', fallback: '1%' },
  { flags: '--worst-budget <percent>', env: 'MOEFLEET_LEARNER_WORST_BUDGET', description: 'the same in the text where it loses the most', fallback: 'twice --budget' },
  { flags: '--budget-for <rules>', env: 'MOEFLEET_LEARNER_BUDGET_FOR', description: 'other budgets for some devices, the first rule that holds: "device/phone-7: 0.5%; class=phone,tier=free: 2%/4%" (mean/worst)' },
  { flags: '--routings <names>', env: 'MOEFLEET_LEARNER_ROUTINGS', description: `ways of routing to measure and to choose from: some of ${ROUTING_NAMES.join(',')}`, fallback: 'cache_prior' },
  { flags: '--threads <n>', env: 'MOEFLEET_LEARNER_THREADS', description: 'compute threads while measuring; 0: physical cores minus one', fallback: '1' },
  { flags: '--operator <address>', env: 'MOEFLEET_OPERATOR', description: 'operator API of a coordinator', fallback: '127.0.0.1:7401' },
  { flags: '--ca <file>', env: 'MOEFLEET_CA', description: 'certificate of the fleet\'s CA, ca.pem, where the coordinator runs with --tls-dir' },
  TOKEN_SETTING,
  ...REDIS_SETTINGS,
  { flags: '--http <host:port>', env: 'MOEFLEET_LEARNER_HTTP_LISTEN', description: '/healthz and /metrics, for whoever reaches it; port 0 takes a free one', fallback: '127.0.0.1:7405' },
  { flags: '--log-level <level>', env: 'MOEFLEET_LOG_LEVEL', description: 'trace, debug, info, warn, error, fatal or silent', fallback: 'info' },
];

export interface LearnerConfig {
  readonly modelPaths: readonly string[];
  /** one per domain */
  readonly textPaths: readonly string[];
  readonly tokens: number;
  readonly budget: QualityBudget;
  readonly budgetRules: readonly BudgetRule[];
  /** in the order in which they are measured */
  readonly routings: readonly Routing[];
  readonly threads: number;
  readonly operatorAddress: string;
  /** PEM; null: plaintext */
  readonly caPem: Buffer | null;
  /** of role learner; null: none is sent */
  readonly token: string | null;
  readonly redis: RedisAddress;
  readonly redisPrefix: string;
  readonly http: ListenAddress;
  readonly logLevel: string;
}

const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'];

/** `values` by environment variable name. Throws ConfigError. */
export function readConfig(values: Env): LearnerConfig {
  const tokens = readInteger('--tokens', values['MOEFLEET_LEARNER_TOKENS'], 4096, 2 * WINDOW_TOKENS, 100_000_000);
  if (tokens % WINDOW_TOKENS !== 0) throw new ConfigError('--tokens', String(tokens), `a multiple of ${WINDOW_TOKENS}`);
  const logLevel = values['MOEFLEET_LOG_LEVEL'] || 'info';
  if (!LOG_LEVELS.includes(logLevel)) throw new ConfigError('--log-level', logLevel, `one of ${LOG_LEVELS.join(', ')}`);
  const mean = readPercent('--budget', values['MOEFLEET_LEARNER_BUDGET'] || '1%');
  const worst = values['MOEFLEET_LEARNER_WORST_BUDGET'] ? readPercent('--worst-budget', values['MOEFLEET_LEARNER_WORST_BUDGET']) : 2 * mean;
  return Object.freeze({
    modelPaths: readModels(required(values, '--model', 'MOEFLEET_LEARNER_MODEL', 'the GGUF file of the model the devices run')),
    textPaths: readTexts(required(values, '--text', 'MOEFLEET_LEARNER_TEXT', 'a UTF-8 text file to measure quality on')),
    tokens,
    budget: { meanNats: Math.log1p(mean), worstNats: Math.log1p(worst) },
    routings: readRoutings(values['MOEFLEET_LEARNER_ROUTINGS'] || 'cache_prior'),
    budgetRules: parseBudgetRules(values['MOEFLEET_LEARNER_BUDGET_FOR'] || ''),
    threads: readInteger('--threads', values['MOEFLEET_LEARNER_THREADS'], 1, 0, 1024),
    operatorAddress: readAddress(values['MOEFLEET_OPERATOR'] || '127.0.0.1:7401'),
    caPem: readCa(values['MOEFLEET_CA']),
    token: readOperatorToken(values['MOEFLEET_TOKEN_FILE'], values),
    redis: readRedisAddress(values),
    redisPrefix: readRedisPrefix(values),
    http: parseListenAddress('--http', values['MOEFLEET_LEARNER_HTTP_LISTEN'] || '127.0.0.1:7405'),
    logLevel,
  });
}

function required(values: Env, flag: string, env: string, what: string): string {
  const value = values[env];
  if (!value) throw new ConfigError(`${flag} (or ${env})`, '', what);
  return value;
}

function readModels(text: string): string[] {
  const paths = listed(text);
  const twice = paths.find((path, i) => paths.indexOf(path) !== i);
  if (paths.length === 0 || twice) throw new ConfigError('--model', text, twice ? `different files ("${twice}" is there twice)` : 'a GGUF file');
  return paths;
}

function listed(text: string): string[] {
  return text.split(',').map((part) => part.trim()).filter(Boolean);
}

/** Two texts of one name could not be told apart. */
function readTexts(text: string): string[] {
  const paths = listed(text);
  const names = paths.map((path) => basename(path, extname(path)));
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (paths.length === 0 || twice) throw new ConfigError('--text', text, twice ? `texts of different names ("${twice}" is there twice)` : 'a UTF-8 text file');
  return paths;
}

/** `cache_prior` first, whose walk tells what another has to beat. */
function readRoutings(text: string): Routing[] {
  const asked = listed(text);
  if (asked.length === 0 || asked.some((name) => !ROUTING_NAMES.some((known) => known === name))) throw new ConfigError('--routings', text, `some of ${ROUTING_NAMES.join(', ')}`);
  return ROUTING_NAMES.filter((name) => asked.includes(name)).map((name) => ROUTINGS[name]);
}

function readAddress(address: string): string {
  const match = /^(\[[^\]]+\]|[^:\s]+):(\d{1,5})$/.exec(address);
  if (!match || Number(match[2]) < 1 || Number(match[2]) > 65_535) throw new ConfigError('--operator', address, 'an address such as 127.0.0.1:7401');
  return address;
}

function readCa(path: string | undefined): Buffer | null {
  if (!path) return null;
  try {
    return readFileSync(path);
  } catch (error) {
    throw new ConfigError('--ca', path, `a file that can be read (${(error as NodeJS.ErrnoException).code}); copy ca.pem from the fleet\'s folder`);
  }
}
