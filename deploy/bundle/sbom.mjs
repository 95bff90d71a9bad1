/**
 * The bundle's bill of materials in CycloneDX: npm's own, cut down to the packages that really are in the compiled agent,
 * plus Node.js and llama.cpp. Without its time stamp, and with a serial number that follows from the content.
 */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';

export function softwareBillOfMaterials({ root, version, arch, packages, nodeVersion, llama, llamaPackage }) {
  const all = JSON.parse(execFileSync('npm', ['sbom', '--sbom-format', 'cyclonedx', '--package-lock-only', '--workspace', '@moefleet/edge-agent'],
    { cwd: root, encoding: 'utf8', maxBuffer: 1 << 26, stdio: ['ignore', 'pipe', 'inherit'] }));
  const wanted = new Set(packages.map(({ name, version: of }) => `${name}@${of}`));
  const components = all.components.filter((component) => wanted.has(component['bom-ref'])).map(withoutOrigin);
  const missing = [...wanted].filter((ref) => !components.some((component) => component['bom-ref'] === ref));
  if (missing.length > 0) throw new Error(`the lock file does not name ${missing.join(', ')}, which the agent contains; run npm install`);
  const native = [
    { 'bom-ref': `node@${nodeVersion}`, type: 'platform', name: 'node', version: nodeVersion, purl: `pkg:npm/node-linux-${arch}@${nodeVersion}`, licenses: [{ license: { id: 'MIT' } }] },
    { 'bom-ref': `llama.cpp@${llama}`, type: 'library', name: 'llama.cpp', version: llama, purl: `pkg:github/ggml-org/llama.cpp@${llama}`, licenses: [{ license: { id: 'MIT' } }] },
    { 'bom-ref': `${llamaPackage.name}@${llamaPackage.version}`, type: 'library', name: llamaPackage.name, version: llamaPackage.version, purl: `pkg:npm/${llamaPackage.name.replace('@', '%40')}@${llamaPackage.version}`, licenses: [{ license: { id: 'MIT' } }] },
  ];
  const self = `moefleet-agent@${version}`;
  const refs = [...components, ...native].map((component) => component['bom-ref']);
  const dependencies = all.dependencies.filter(({ ref }) => wanted.has(ref)).map(({ ref, dependsOn }) => ({ ref, dependsOn: dependsOn.filter((other) => wanted.has(other)).sort() }));
  const document = {
    bomFormat: 'CycloneDX', specVersion: all.specVersion, version: 1,
    metadata: {
      tools: all.metadata.tools,
      component: { 'bom-ref': self, type: 'application', name: 'moefleet-agent', version, licenses: [{ license: { id: 'Apache-2.0' } }], properties: [{ name: 'moefleet:arch', value: arch }] },
    },
    components: [...components, ...native].sort(byRef('bom-ref')),
    dependencies: [{ ref: self, dependsOn: refs.sort() }, ...dependencies.sort(byRef('ref'))],
  };
  const digest = createHash('sha256').update(JSON.stringify(document)).digest('hex');
  const serial = `${digest.slice(0, 8)}-${digest.slice(8, 12)}-5${digest.slice(13, 16)}-8${digest.slice(17, 20)}-${digest.slice(20, 32)}`;
  return `${JSON.stringify({ $schema: all.$schema, serialNumber: `urn:uuid:${serial}`, ...document }, null, 1)}\n`;
}

/** Where a package came from differs with the registry that npm is set up for. */
function withoutOrigin(component) {
  const externalReferences = (component.externalReferences ?? []).filter(({ type }) => type !== 'distribution');
  return { ...component, externalReferences };
}

function byRef(key) {
  return (a, b) => (a[key] < b[key] ? -1 : a[key] > b[key] ? 1 : 0);
}
