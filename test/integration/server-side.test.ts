/** The files of deploy/compose and deploy/k8s against what they are about: settings and metrics by name, and the programs that read them. */
import { execFileSync, spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { findJaeger } from '@moefleet/demo/jaeger-binary';
import { parseAllDocuments } from 'yaml';
import { SETTINGS as COORDINATOR } from '../../coordinator/src/config';
import { Metrics as CoordinatorMetrics } from '../../coordinator/src/metrics';
import { SETTINGS as LEARNER } from '../../services/learner/src/config';
import { Metrics as LearnerMetrics } from '../../services/learner/src/metrics';
import { findHelm } from '../harness/helm';
import { type KubernetesDocument, unfitting } from '../harness/kubernetes-schema';
import { COMPOSE, composedServices } from '../harness/server-side';

const DEPLOY = join(__dirname, '..', '..', 'deploy');
const CHART = join(DEPLOY, 'k8s', 'moefleet');
const RENDERED = ['--kube-version', '1.30', '--set', 'fleet.existingSecret=fleet', '--set', 'redis.url=redis://redis:6379'];

const textOf = (...path: string[]) => readFileSync(join(...path), 'utf8');
const has = (program: string) => ['--version', 'version', '-v'].some((word) => spawnSync(program, [word]).status === 0);
/** Only where the program is installed. */
const withProgram = (program: string) => (has(program) ? test : test.skip);
const jaeger = findJaeger();

type Labels = Record<string, string>;
interface Port { name: string; port?: number; containerPort?: number }
/** As much of a document as tells who scrapes whom. */
interface Monitored {
  kind: string;
  metadata: { name: string; labels: Labels };
  spec: {
    selector?: { matchLabels: Labels }; endpoints?: { port: string }[]; podMetricsEndpoints?: { port: string }[]; ports?: Port[];
    template?: { metadata: { labels: Labels }; spec: { containers: { ports: Port[] }[] } };
  };
}

/** Names that are variables of these files rather than settings of a program. */
const OF_THE_FILES = ['MOEFLEET_IMAGE', 'MOEFLEET_FLEET_NAME', 'MOEFLEET_REDIS_MEMORY', 'MOEFLEET_MODELS', 'MOEFLEET_COLLECTOR_CONFIG'];

test('every setting that is named is one of the coordinator or the learner', () => {
  const known = new Set([...COORDINATOR, ...LEARNER].map(({ env }) => env).concat(OF_THE_FILES, 'MOEFLEET_TOKEN'));
  const files = [textOf(COMPOSE, 'compose.yaml'), ...readdirSync(join(CHART, 'templates')).map((file) => textOf(CHART, 'templates', file))];
  const named = new Set(files.flatMap((file) => file.match(/MOEFLEET_[A-Z0-9_]+/g) ?? []));
  expect(named.size).toBeGreaterThan(12);
  expect([...named].filter((name) => !known.has(name))).toEqual([]);
});

test('wherever agents are let in, so are devices that fetch models, under the port that a coordinator tells them', () => {
  const files: [string, RegExp][] = [
    [textOf(COMPOSE, 'compose.yaml'), /MOEFLEET_BLOB_LISTEN: 0\.0\.0\.0:7403[^]*"7403:7403"/], [textOf(COMPOSE, 'haproxy.cfg'), /bind :7403[^]*coordinator-1:7403\n.*coordinator-2:7403/],
    [textOf(CHART, 'templates', 'coordinator-deployment.yaml'), /MOEFLEET_BLOB_LISTEN, value: "0\.0\.0\.0:7403"[^]*name: models, containerPort: 7403/],
    [textOf(CHART, 'templates', 'coordinator-service.yaml'), /name: models, port: 7403, targetPort: models/], [textOf(CHART, 'templates', 'network-policy.yaml'), /port: agents \}, \{ port: models/],
    [textOf(DEPLOY, 'images', 'Dockerfile'), /EXPOSE .*7403/],
  ];
  for (const [text, letsIn] of files) expect(text).toMatch(letsIn);
});

test('every metric of ours in alerts and dashboards is one that a coordinator or a learner has', async () => {
  const text = await new CoordinatorMetrics().text() + await new LearnerMetrics().text();
  const told = new Set([...text.matchAll(/^# TYPE (\S+) (\S+)$/gm)].flatMap(([, name, type]) => (type === 'histogram' ? [`${name}_bucket`, `${name}_sum`, `${name}_count`] : [name])));
  const files = [textOf(COMPOSE, 'alerts.yml'), textOf(COMPOSE, 'grafana', 'dashboards', 'moefleet.json')];
  const named = new Set(files.flatMap((file) => file.match(/(moefleet_coordinator|moefleet_learner|grpc_server)_[a-z0-9_]+/g) ?? []));
  expect([...named].filter((name) => name.startsWith('moefleet_learner')).length).toBeGreaterThan(6);
  expect(named.size).toBeGreaterThan(20);
  expect([...named].filter((name) => !told.has(name))).toEqual([]);
});

test('a dashboard\'s panels have places of their own and titles', () => {
  const { panels } = JSON.parse(textOf(COMPOSE, 'grafana', 'dashboards', 'moefleet.json')) as { panels: { title: string; gridPos: { x: number; y: number } }[] };
  expect(new Set(panels.map(({ gridPos }) => `${gridPos.x},${gridPos.y}`)).size).toBe(panels.length);
  expect(panels.every(({ title }) => title.length > 0)).toBe(true);
});

(jaeger ? test : test.skip)('Jaeger, itself a collector, reads its own and the collector\'s configurations', () => {
  for (const file of ['jaeger.yaml', 'collector.yaml', 'collector-sampling.yaml']) {
    execFileSync(jaeger!, ['validate', '--config', join(COMPOSE, file)], { stdio: 'pipe' });
  }
});

withProgram('docker-compose')('docker-compose reads the composition, learner included', () => {
  const services = composedServices();
  expect(Object.keys(services)).toEqual(expect.arrayContaining(['redis', 'coordinator-1', 'coordinator-2', 'balancer', 'learner', 'collector', 'jaeger', 'prometheus', 'grafana']));
  expect(services['redis']!.command.join(' ')).toMatch(/--appendonly yes .*--maxmemory-policy noeviction/);
});

withProgram('promtool')('promtool reads configuration and rules, and each alert fires where it has to and nowhere else', () => {
  execFileSync('promtool', ['check', 'config', join(COMPOSE, 'prometheus.yml')]);
  const cases = join(__dirname, '..', 'fixtures', 'alerts.test.yml');
  execFileSync('promtool', ['test', 'rules', cases]);
  const fired = new Set([...readFileSync(cases, 'utf8').matchAll(/alertname: (\w+)\n +exp_alerts/g)].map(([, name]) => name));
  const alerts = [...textOf(COMPOSE, 'alerts.yml').matchAll(/- alert: (\w+)/g)].map(([, name]) => name);
  expect(alerts.filter((name) => !fired.has(name))).toEqual([]);
});

withProgram('haproxy')('haproxy reads its configuration', () => {
  execFileSync('haproxy', ['-c', '-f', join(COMPOSE, 'haproxy.cfg')], { stdio: 'pipe' });
});

describe('the chart', () => {
  const helm = findHelm();
  const withHelm = helm === null ? test.skip : test;
  /** Everything that can be asked for, in two ways. */
  const EVERYTHING = [
    ['--set', 'learner.enabled=true', '--set', 'learner.modelClaim=models', '--set', 'learner.tokenSecret=learner', '--set', 'coordinator.autoscaling.enabled=true', '--set', 'operators.existingSecret=admin',
      '--set', 'artifacts.claim=artifacts', '--set', 'imagePullSecrets[0].name=pull', '--set', 'coordinator.env.MOEFLEET_LEARN_EVERY=60', '--set', 'coordinator.nodeSelector.disk=fast'],
    ['--set', 'artifacts.s3=s3://models/fleet', '--set', 'artifacts.s3Endpoint=https://minio', '--set', 'artifacts.existingSecret=bucket', '--set', 'redis.url=', '--set', 'redis.existingSecret=redis', '--set', 'redis.sentinel=master',
      '--set', 'coordinator.tolerations[0].key=edge', '--set', 'coordinator.tolerations[0].operator=Exists', '--set', 'networkPolicy.operatorFrom[0].ipBlock.cidr=10.0.0.0/8', '--set', 'coordinator.service.type=LoadBalancer'],
  ];
  const template = (...more: string[]) => spawnSync(helm!, ['template', 'm', CHART, ...RENDERED, ...more], { encoding: 'utf8' });

  withHelm('passes helm\'s strict lint, and refuses what it does not know, and what it lacks', () => {
    for (const more of [[], ...EVERYTHING]) execFileSync(helm!, ['lint', '--strict', CHART, ...RENDERED, ...more]);
    expect(template('--set', 'coordinator.replica=3').stderr).toMatch(/replica/);
    expect(template('--set', 'redis.url=').stderr).toMatch(/where the fleet's Redis is/);
  });

  withHelm('becomes documents that Kubernetes knows, without an unknown field', () => {
    const documents = [[], ...EVERYTHING].flatMap((more) => parseAllDocuments(template(...more).stdout).map((document) => document.toJS() as KubernetesDocument & { spec: Record<string, unknown> }));
    expect([...new Set(documents.map(({ kind }) => kind))].sort()).toEqual(['Deployment', 'HorizontalPodAutoscaler', 'NetworkPolicy', 'PodDisruptionBudget', 'Service']);
    // One that does not fit, so that the others are seen to have been looked at.
    const service = structuredClone(documents.find(({ kind }) => kind === 'Service')!);
    service.metadata.name = 'misspelt';
    service.spec['clusterIp'] = 'None';
    expect(unfitting([...documents, service])).toEqual([expect.stringMatching(/^Service misspelt: .*clusterIp.* does not exist/)]);
  }, 30_000);

  withHelm('has the Prometheus operator scrape what is there: each monitor finds its pods, by labels and by a port that they have', () => {
    const monitored = (...more: string[]) => {
      const documents = parseAllDocuments(template('--set', 'serviceMonitor.enabled=true', ...more).stdout).map((document) => document.toJS() as Monitored);
      const pods = documents.filter(({ kind }) => kind === 'Deployment').map(({ spec }) => spec.template!);
      const services = documents.filter(({ kind }) => kind === 'Service');
      const matches = (wanted: Labels, labels: Labels) => Object.entries(wanted).every(([name, value]) => labels[name] === value);
      return documents.filter(({ kind }) => kind.endsWith('Monitor')).map(({ kind, metadata, spec }) => {
        const port = (spec.endpoints ?? spec.podMetricsEndpoints)![0]!.port;
        const ports = kind === 'PodMonitor'
          ? pods.filter((pod) => matches(spec.selector!.matchLabels, pod.metadata.labels)).flatMap((pod) => pod.spec.containers.flatMap((container) => container.ports))
          : services.filter((service) => matches(spec.selector!.matchLabels, service.metadata.labels)).flatMap((service) => service.spec.ports!);
        return [kind, metadata.name, ports.filter(({ name }) => name === port).map((one) => one.containerPort ?? one.port)];
      });
    };
    expect(monitored()).toEqual([['ServiceMonitor', 'm-moefleet-coordinator', [7402]]]);
    expect(monitored(...EVERYTHING[0]!)).toEqual([['PodMonitor', 'm-moefleet-learner', [7405]], ['ServiceMonitor', 'm-moefleet-coordinator', [7402]]]);
    expect(template(...EVERYTHING[0]!).stdout).not.toContain('Monitor');
  });
});
