/**
 * What shall be on a device, and the files that say so there. Rendering is a pure function of the settings and of where
 * things lie on the device: the same wishes give the same bytes, which is how a second run sees that nothing has changed.
 */
import { UsageFailure } from '../failure';
import { deployFile } from './deploy-files';
import type { DeviceFacts } from './device-facts';

export interface Wanted {
  id: string;
  /** host:port that the device dials, or none */
  coordinator: string;
  labels: string;
  /** null: half of what is available when the agent starts */
  cacheBytes: number | null;
  /** file name in the device's model folder, or a path on the device */
  model: { name: string } | { path: string };
  user: string;
  /** as systemd takes it: a percentage of the memory, or bytes */
  memoryLimit: string;
  /** host:port of the device's HTTP API */
  http: string;
  /** text of the public key that releases have to be signed with; null: none is pinned */
  bundleKey: string | null;
  /** further environment of the agent */
  settings: Readonly<Record<string, string>>;
}

export interface RenderedFile { path: string; mode: string; owner: 'root' | 'service'; content: string; }

export function modelPath(wanted: Wanted, facts: Pick<DeviceFacts, 'state'>): string {
  return 'name' in wanted.model ? `${facts.state}/models/${wanted.model.name}` : wanted.model.path;
}

/** The user that the agent runs as: in a user's own scope whoever logs in. */
export function serviceUser(wanted: Wanted, facts: Pick<DeviceFacts, 'scope' | 'login'>): string {
  return facts.scope === 'system' ? wanted.user : facts.login;
}

/** The agent's settings as environment. Values are quoted so that systemd and sh read the same. */
export function renderSettings(wanted: Wanted, facts: DeviceFacts): RenderedFile {
  const values: Record<string, string> = {
    MOEFLEET_DEVICE_ID: wanted.id,
    MOEFLEET_COORDINATOR: wanted.coordinator,
    MOEFLEET_MODEL: modelPath(wanted, facts),
    MOEFLEET_STATE_DIR: facts.state,
    MOEFLEET_HTTP: wanted.http,
    ...(wanted.labels ? { MOEFLEET_LABELS: wanted.labels } : {}),
    ...(wanted.cacheBytes === null ? {} : { MOEFLEET_MAX_CACHE: String(wanted.cacheBytes) }),
    ...(wanted.bundleKey === null ? {} : { MOEFLEET_BUNDLE_KEY: keyPath(facts) }),
    ...wanted.settings,
  };
  const lines = Object.entries(values).map(([name, value]) => `${name}="${checkValue(name, value)}"`);
  return { path: `${facts.config}/agent.env`, mode: '0640', owner: 'service', content: `# Written by \`moefleet deploy\`, which writes it anew where it differs.\n${lines.join('\n')}\n` };
}

/** Not the agent's to write, so that whoever has taken it over cannot have it take their releases; null where none is pinned. */
export function renderKey(wanted: Wanted, facts: DeviceFacts): RenderedFile | null {
  return wanted.bundleKey === null ? null : { path: keyPath(facts), mode: '0644', owner: 'root', content: wanted.bundleKey };
}

function keyPath({ config }: DeviceFacts): string {
  return `${config}/bundle-key.pub`;
}

export function renderUnit(wanted: Wanted, facts: DeviceFacts): RenderedFile {
  const content = fill(deployFile('systemd/moefleet-agent.service'), {
    PREFIX: facts.prefix, CONFIG: facts.config, STATE: facts.state, USER: serviceUser(wanted, facts), MEMORY_LIMIT: wanted.memoryLimit,
  });
  return { path: '/etc/systemd/system/moefleet-agent.service', mode: '0644', owner: 'root', content };
}

export function renderLauncher(wanted: Wanted, facts: DeviceFacts): RenderedFile {
  const content = fill(deployFile('device/launcher.sh'), { PREFIX: facts.prefix, CONFIG: facts.config, STATE: facts.state, USER: serviceUser(wanted, facts) });
  return { path: `${facts.prefix}/launcher.sh`, mode: '0755', owner: 'root', content };
}

/** @NAME@ of a template; systemd's own @system-service has no second @. */
function fill(template: string, values: Readonly<Record<string, string>>): string {
  return template.replace(/@([A-Z_]+)@/g, (whole, name: string) => values[name] ?? whole);
}

/** What a shell or systemd would read as more than text is refused. */
function checkValue(name: string, value: string): string {
  if (/["\\$`\n\r\0%]/.test(value)) throw new UsageFailure(`${name}: "${value}" has a character that settings on devices cannot hold (" \\ $ \` % or a line's end)`);
  return value;
}
