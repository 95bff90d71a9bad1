/**
 * Kubernetes' API as its own OpenAPI description has it, by way of the types that are made from that (kubernetes-types): a
 * document fits if it is a literal of its kind's type, which knows no further fields.
 */
import { createCompilerHost, createProgram, createSourceFile, flattenDiagnosticMessageText, getPreEmitDiagnostics, ModuleKind, ModuleResolutionKind, ScriptTarget } from 'typescript';
import { join } from 'node:path';
import { REPO } from './paths';

export interface KubernetesDocument { apiVersion: string; kind: string; metadata: { name: string }; }

const FILE = join(REPO, 'test', 'kubernetes-documents.ts');

/** What of `documents` is not of its kind, in a line each: `Deployment m-coordinator: ...`. Kinds that are not Kubernetes' own throw. */
export function unfitting(documents: readonly KubernetesDocument[]): string[] {
  const lines = documents.map(({ apiVersion, kind, ...rest }, at) => `const d${at}: import('kubernetes-types/${moduleOf(apiVersion)}').${kind} = ${JSON.stringify({ apiVersion, kind, ...rest })};`);
  const options = { strict: true, noEmit: true, skipLibCheck: true, target: ScriptTarget.ES2022, module: ModuleKind.Preserve, moduleResolution: ModuleResolutionKind.Bundler, types: [] };
  const host = createCompilerHost(options);
  const { getSourceFile, fileExists } = host;
  host.fileExists = (path) => path === FILE || fileExists(path);
  host.getSourceFile = (path, target, ...more) => (path === FILE ? createSourceFile(FILE, `${lines.join('\n')}\nexport {};\n`, target) : getSourceFile(path, target, ...more));
  const program = createProgram([FILE], options, host);
  return getPreEmitDiagnostics(program).map(({ messageText, file, start }) => {
    const { kind, metadata } = documents[file?.getLineAndCharacterOfPosition(start ?? 0).line ?? 0]!;
    return `${kind} ${metadata.name}: ${flattenDiagnosticMessageText(messageText, ' ')}`;
  });
}

/** `networking.k8s.io/v1` is `networking/v1`, and `v1` is `core/v1`. */
function moduleOf(apiVersion: string): string {
  const [group, version] = apiVersion.includes('/') ? apiVersion.split('/') as [string, string] : ['core', apiVersion];
  if (group.includes('.') && !group.endsWith('.k8s.io')) throw new Error(`${apiVersion} is not Kubernetes' own`);
  return `${group.split('.')[0]}/${version}`;
}
