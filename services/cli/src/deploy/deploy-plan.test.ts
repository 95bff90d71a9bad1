import { UsageFailure } from '../failure';
import { bytesNeeded, type Cargo, planDeploy, sha256 } from './deploy-plan';
import { parseFacts } from './device-facts';
import { factsText } from './testing/facts-text';
import { renderLauncher, renderSettings, renderUnit, type Wanted } from './wanted';

const wanted: Wanted = {
  id: 'orin-1', coordinator: '10.0.0.1:7400', labels: 'class=jetson', cacheBytes: 2 ** 30, model: { name: 'm.gguf' }, user: 'moefleet', memoryLimit: '80%', http: '127.0.0.1:8400', bundleKey: null, settings: { MOEFLEET_LANES: '2' },
};
const [bundle, model] = [{ sha256: 'b'.repeat(64), bytes: 100, version: '1.0.0' }, { sha256: 'c'.repeat(64), bytes: 1000 }];
const cargo: Cargo = { bundle, model, enrols: true };
const fresh = parseFacts(factsText());
const deployed = (change: Record<string, string> = {}) => parseFacts(factsText({
  user_exists: 'yes', installed_bundle: bundle.sha256, settings_sha256: sha256(renderSettings(wanted, fresh).content), unit_sha256: sha256(renderUnit(wanted, fresh).content),
  model_sha256: model.sha256, enrolled: 'yes', running: 'yes', ...change,
}));
const steps = (facts = deployed(), of = wanted, brought = cargo) => planDeploy(facts, of, brought).map((step) => (step.t === 'file' ? step.file.path : step.t));

test('a fresh device gets everything, the service last', () => {
  expect(steps(fresh)).toEqual(['user', 'bundle', 'model', '/etc/moefleet/agent.env', '/etc/systemd/system/moefleet-agent.service', 'enrol', 'start']);
  expect(bytesNeeded(planDeploy(fresh, wanted, cargo), cargo, 400)).toEqual({ prefixBytes: 500, stateBytes: 1000 });
});

test('a device that is as it shall be gets nothing', () => {
  expect(steps()).toEqual([]);
  expect(bytesNeeded([], cargo, 400)).toEqual({ prefixBytes: 0, stateBytes: 0 });
});

test('what differs, and that alone, is brought in line', () => {
  expect(steps(deployed({ running: 'no' }))).toEqual(['start']);
  expect(steps(deployed({ model_sha256: 'd'.repeat(64) }))).toEqual(['model', 'start']);
  expect(steps(deployed({ settings_sha256: '' }))).toEqual(['/etc/moefleet/agent.env', 'start']);
  expect(steps(deployed(), { ...wanted, labels: 'class=phone' })).toEqual(['/etc/moefleet/agent.env', 'start']);
  expect(steps(deployed(), { ...wanted, memoryLimit: '50%' })).toEqual(['/etc/systemd/system/moefleet-agent.service', 'start']);
  expect(steps(deployed(), wanted, { ...cargo, bundle: { ...bundle, sha256: 'e'.repeat(64) } })).toEqual(['bundle', 'start']);
  expect(steps(deployed({ enrolled: 'no' }))).toEqual(['enrol', 'start']);
  expect(steps(deployed({ enrolled: 'no' }), wanted, { ...cargo, enrols: false })).toEqual([]);
});

test('a key that releases have to be signed with is pinned, and pinned anew where it is another', () => {
  const pinning = { ...wanted, bundleKey: 'untrusted comment: a key\nRWQ\n' };
  expect(steps(deployed(), pinning)).toEqual(['/etc/moefleet/agent.env', '/etc/moefleet/bundle-key.pub', 'start']);
  expect(renderSettings(pinning, fresh).content).toContain('\nMOEFLEET_BUNDLE_KEY="/etc/moefleet/bundle-key.pub"\n');
});

test('without systemd a launcher, without root no user of its own', () => {
  expect(steps(parseFacts(factsText({ systemd: '' })))).toEqual(['user', 'bundle', 'model', '/etc/moefleet/agent.env', '/opt/moefleet/launcher.sh', 'enrol', 'start']);
  const own = parseFacts(factsText({ systemd: '', scope: 'user', login: 'u0_a123', prefix: '/home/u/.moefleet', config: '/home/u/.moefleet/etc', state: '/home/u/.moefleet/state' }));
  expect(steps(own)).toEqual(['bundle', 'model', '/home/u/.moefleet/etc/agent.env', '/home/u/.moefleet/launcher.sh', 'enrol', 'start']);
  expect(renderLauncher(wanted, own).content).toContain('service_user=\'u0_a123\'');
});

test('settings are one line each, and a value that a shell would read is refused', () => {
  expect(renderSettings(wanted, fresh).content).toContain('\nMOEFLEET_MAX_CACHE="1073741824"\nMOEFLEET_LANES="2"\n');
  for (const value of ['a"b', '$(reboot)', 'a\nB=c', 'x`y`', '100%']) expect(() => renderSettings({ ...wanted, labels: value }, fresh)).toThrow(UsageFailure);
});

test('nothing of the templates is left unfilled, and systemd\'s own groups of calls stay', () => {
  expect(renderUnit(wanted, fresh).content).not.toMatch(/@[A-Z_]+@/);
  expect(renderUnit(wanted, fresh).content).toContain('SystemCallFilter=@system-service');
});
