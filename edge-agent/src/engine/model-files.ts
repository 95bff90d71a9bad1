/** Model files looked at and written by the native engine, without opening a model. Progress is in bytes. */
import { type CheckResult, type EngineAddon, loadAddon, type ModelInfo, type QuantizeOptions, type WidenOptions, type WriteResult } from '../native';
import { toEngineError } from './engine-error';

type Progress = (done: number, total: number) => void;

/** Reads and checks a model's header; touches no tensor data. ModelFormatError, NotMoeError, EngineIoError. */
export const inspectModel = (modelPath: string): Promise<ModelInfo> => call((addon) => addon.inspect(modelPath));

export const packModel = (source: string, target: string, replace = false, onProgress: Progress = () => {}): Promise<WriteResult> =>
  call((addon) => addon.pack(source, target, replace, onProgress));

/** BadArgumentError where the file has no checksums. */
export const checkModel = (modelPath: string, onProgress: Progress = () => {}): Promise<CheckResult> => call((addon) => addon.check(modelPath, onProgress));

/** Widens every expert without changing the model's function. */
export const widenModel = (source: string, target: string, options: Partial<WidenOptions>, onProgress: Progress = () => {}): Promise<WriteResult & { width: number }> =>
  call((addon) => addon.widen(source, target, { width: 0, expertBytes: 0, totalBytes: 0, replace: false, ...options }, onProgress));

/** `relativeError`: what quantising changed in the expert weights, root mean square over root mean square. */
export const quantizeModel = (source: string, target: string, options: QuantizeOptions, onProgress: Progress = () => {}): Promise<WriteResult & { relativeError: number }> =>
  call((addon) => addon.quantize(source, target, options, onProgress));

async function call<T>(work: (addon: EngineAddon) => Promise<T>): Promise<T> {
  try {
    return await work(loadAddon());
  } catch (error) {
    throw toEngineError(error);
  }
}
